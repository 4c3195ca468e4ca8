"""Computer and software: the Mac, its macOS, Python, MLX, power, heat, Thunderbolt."""

import re
import shlex
import sys
from collections.abc import Iterator

from r1mac.doctor.examination import CheckResult, Examination
from r1mac.engine.device import Device
from r1mac.errors import UnsupportedMachine
from r1mac.machine.base import HardwareProfile
from r1mac.machine.readings import Thunderbolt
from r1mac.units import format_memory

_UPDATE_MACOS = "update macOS in System Settings > General > Software Update"
_WIRING_MACOS = (15,)
_MATRIX_UNITS_MACOS = (26, 2)  # so does RDMA
_FIRST_MATRIX_UNITS_GENERATION = 5
_FAST_THUNDERBOLT_GBIT_PER_S = 80  # what Thunderbolt 5 runs at; free ports say 120, and version 4 has 40


def check_computer(examination: Examination) -> Iterator[CheckResult]:
    """Say which computer this is, and whether MLX can run on it."""
    known = examination.profile_or_refusal
    if isinstance(known, UnsupportedMachine):
        if not examination.readings.translated:  # else it is a matter of Python
            yield CheckResult(
                name="computer", status="fail", found=known.problem, why="r1mac cannot run a model here", fix=known.hint
            )
        return
    model = f" ({examination.readings.model})" if examination.readings.model else ""
    found = f"{known.chip}, {format_memory(known.memory_bytes)}{model}"
    if known.virtual:
        yield CheckResult(
            name="computer",
            status="warn",
            found=f"{found}, a virtual Mac",
            why="MLX keeps no memory wired in a virtual Mac, so a large model may be slow",
            fix="run r1mac on the Mac itself",
        )
        return
    yield CheckResult(name="computer", status="ok", found=found)


def check_macos(examination: Examination) -> Iterator[CheckResult]:
    """Say what this macOS is too old for."""
    mac = examination.mac
    if mac is None or mac.macos is None:
        return
    found = ".".join(map(str, mac.macos))
    if mac.macos < _WIRING_MACOS:
        yield CheckResult(
            name="macOS",
            status="warn",
            found=found,
            why="before macOS 15 MLX cannot keep a model in memory, so that a large one may decode many times slower",
            fix=_UPDATE_MACOS,
        )
    elif _has_matrix_units(mac) and mac.macos < _MATRIX_UNITS_MACOS:
        yield CheckResult(
            name="macOS",
            status="warn",
            found=found,
            why="MLX uses the matrix units of this chip's GPU from macOS 26.2 on; prompts are read slower without them",
            fix=_UPDATE_MACOS,
        )
    else:
        yield CheckResult(name="macOS", status="ok", found=found)


def _has_matrix_units(mac: HardwareProfile) -> bool:
    match = re.match(r"Apple M([0-9]{1,3})\b", mac.chip)
    return match is not None and int(match[1]) >= _FIRST_MATRIX_UNITS_GENERATION


def check_python(examination: Examination) -> Iterator[CheckResult]:
    """Say which Python this is, and whether it runs under Rosetta."""
    import platform

    found = f"{platform.python_version()} for {platform.machine()}"
    if examination.readings.translated:
        yield CheckResult(
            name="Python",
            status="fail",
            found=f"{found}, under Rosetta",
            why="MLX exists for arm64 only",
            fix="install r1mac with an arm64 Python, from a Terminal where `uname -m` prints arm64",
        )
        return
    yield CheckResult(name="Python", status="ok", found=found)


def check_mlx(examination: Examination) -> Iterator[CheckResult]:
    """Say which MLX is installed, whether r1mac is written for it, and whether it reaches the GPU."""
    if isinstance(examination.profile_or_refusal, UnsupportedMachine):
        return
    versions, wrong = [], []
    for package in ("mlx", "mlx-lm"):
        version = installed_version(package)
        versions.append(f"{package} {version or 'missing'}")
        wanted = required_versions(package)
        if version is None or not allows(wanted, version):
            wrong.append(f"{package}{wanted}")
    found = ", ".join(versions)
    if wrong:
        yield CheckResult(
            name="MLX",
            status="fail",
            found=found,
            why=f"this r1mac is written for {' and '.join(wrong)}; other releases rename what it uses",
            fix=f"{_python()} -m pip install {' '.join(map(shlex.quote, wrong))}",
        )
        return
    device = examination.device
    if isinstance(device, str):
        yield CheckResult(
            name="MLX",
            status="fail",
            found=f"{found}; it does not start: {device}",
            why="nothing can be computed",
            fix=f"{_python()} -m pip install --force-reinstall mlx mlx-lm",
        )
    elif examination.mac is not None and not device.on_gpu:
        yield CheckResult(
            name="MLX",
            status="fail",
            found=f"{found}; no Metal device",
            why="without the GPU a model is many times slower, and larger ones do not fit",
            fix="run r1mac in a session at the screen (Terminal), not in a sandbox or a virtual machine without a GPU",
        )
    else:
        yield CheckResult(name="MLX", status="ok", found=f"{found}, {_device_name(device)}")


def _device_name(device: Device) -> str:
    return f"on the GPU of {device.name}" if device.on_gpu else f"on the processor ({device.name})"


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, which is not imported."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def required_versions(package: str) -> str:
    """Return what this r1mac says of *package*, such as ``"<0.33,>=0.32.4"``; nothing where it is not installed."""
    from importlib import metadata

    try:
        requirements = metadata.requires("r1mac") or ()
    except metadata.PackageNotFoundError:
        return ""
    matches = (re.match(rf"{re.escape(package)}(?:\[\w+\])?\s*([<>=!~,.0-9\s]+)", line) for line in requirements)
    return next((match[1].strip() for match in matches if match), "")


def allows(wanted: str, version: str) -> bool:
    """Tell whether *version* is in the range *wanted*, of ``>=`` and ``<`` as r1mac writes its own."""
    number = _numbers(version)
    for operator, limit in re.findall(r"(>=|<)\s*([0-9.]+)", wanted):
        if (number < _numbers(limit)) is (operator == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9})*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _python() -> str:
    return shlex.quote(sys.executable)


def check_power(examination: Examination) -> Iterator[CheckResult]:
    """Say in which power mode the Mac is."""
    readings = examination.readings
    if readings.power_mode is None and readings.power_source is None:
        return
    modes = {"low": "Low Power Mode", "automatic": "automatic mode", "high": "High Power Mode", None: ""}
    source = {"mains": "mains", "battery": "battery", None: ""}[readings.power_source]
    found = ", ".join(text for text in (source, modes[readings.power_mode]) if text)
    if readings.power_mode == "low":
        yield CheckResult(
            name="power",
            status="warn",
            found=found,
            why="the GPU runs slower: the same Mac decoded 1.4 to 3.8 times as fast at full power",
            fix="turn it off in System Settings > Battery (or Energy), or: sudo pmset -a lowpowermode 0",
        )
        return
    yield CheckResult(name="power", status="ok", found=found)


def check_heat(examination: Examination) -> Iterator[CheckResult]:
    """Say whether macOS slows the Mac down to cool it."""
    thermal = examination.readings.thermal
    if thermal is None:
        return
    if thermal in {"nominal", "moderate"}:
        yield CheckResult(name="heat", status="ok", found=f"{thermal} thermal pressure")
        return
    yield CheckResult(
        name="heat",
        status="warn",
        found=f"{thermal} thermal pressure",
        why="macOS slows processor and GPU down until the Mac has cooled",
        fix="let air to it and wait a few minutes; long thoughts heat a MacBook more than a Mac Studio",
    )


def check_thunderbolt(examination: Examination) -> Iterator[CheckResult]:
    """Say whether this Mac could share a model with another one."""
    if examination.mac is None:
        return
    thunderbolt = examination.machine.thunderbolt()
    if thunderbolt is None or not thunderbolt.ports:
        return
    found = _ports(thunderbolt)
    fast = any((port.gbit_per_s or 0) >= _FAST_THUNDERBOLT_GBIT_PER_S for port in thunderbolt.ports)
    peers = [port.peer for port in thunderbolt.ports if port.peer]
    if thunderbolt.rdma == "enabled" and thunderbolt.rdma_devices:
        found += f"; RDMA over {', '.join(thunderbolt.rdma_devices)}"
    elif thunderbolt.rdma == "enabled":
        found += "; RDMA is enabled, but no port of this Mac can do it"
    elif fast and peers:
        yield CheckResult(
            name="Thunderbolt",
            status="warn",
            found=f"{found}; RDMA is off",
            why="a message between two Macs takes about 300 µs over TCP and less than 50 over RDMA",
            fix="start this Mac into Recovery, open Utilities > Terminal, type: rdma_ctl enable; then restart"
            if thunderbolt.rdma == "disabled"
            else "RDMA came with macOS 26.2: " + _UPDATE_MACOS,
        )
        return
    yield CheckResult(name="Thunderbolt", status="ok", found=found)


def _ports(thunderbolt: Thunderbolt) -> str:
    free = [port for port in thunderbolt.ports if port.peer is None]
    parts = [f"port {port.name} to {port.peer} at {port.gbit_per_s} Gb/s" for port in thunderbolt.ports if port.peer]
    speeds = sorted({port.gbit_per_s for port in free if port.gbit_per_s}, reverse=True)
    for speed in speeds:
        count = sum(port.gbit_per_s == speed for port in free)
        parts.append(f"{_counted(count)} of {speed} Gb/s")
    return ", ".join(parts) or _counted(len(thunderbolt.ports))


def _counted(count: int) -> str:
    return "1 port" if count == 1 else f"{count} ports"
