"""What MLX finds to compute on, asked in a process of its own.

Where Metal is out of reach (a login over ssh, a sandbox) MLX may end the whole process; then only that one ends.
``python -m r1mac.engine.device`` prints it as JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass

_SECONDS = 60.0  # the first import after an installation compiles MLX's Python files


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """MLX's device.

    Attributes:
        name: such as ``"Apple M4 Max"``.
        on_gpu: whether MLX computes on a GPU unless it is told otherwise.
        working_set_bytes: what Metal lets the GPU hold in this process; None elsewhere.
        memory_bytes: the computer's memory as Metal sees it.
    """

    name: str
    on_gpu: bool
    working_set_bytes: int | None = None
    memory_bytes: int | None = None


def ask_device() -> Device | str:
    """Return MLX's device, or in a few words why MLX does not tell."""
    import subprocess

    try:
        done = subprocess.run(
            (sys.executable, "-m", "r1mac.engine.device"),
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return f"asking it failed: {error}"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return Device(**json.loads(lines[-1]))
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode} and said nothing"])[-1]
    return last.strip()


def _read_device() -> Device:
    import mlx.core as mx

    info = mx.device_info()
    working_set, memory = info.get("max_recommended_working_set_size"), info.get("memory_size")
    return Device(
        name=str(info.get("device_name") or "a device without a name"),
        on_gpu=bool(mx.default_device().type == mx.DeviceType.gpu),
        working_set_bytes=int(working_set) if working_set else None,
        memory_bytes=int(memory) if memory else None,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_read_device())))
