"""A conversion's costs, and what its result loses."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.quality.texts import ROOT


def run(*command: str, home: Path | None = None, limit_s: int = 24 * 3600) -> dict[str, Any]:
    """Run a Python program to its end; return seconds of wall and processor, its peak memory, and how it failed."""
    arguments = [sys.executable, "-m", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    if home is not None:
        environment |= {"HOME": str(home)}
    started = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0)]
    child = os.posix_spawn(arguments[0], arguments, environment, file_actions=silent)
    limit = threading.Timer(limit_s, os.kill, (child, signal.SIGKILL))
    limit.start()
    _, status, usage = os.wait4(child, 0)
    limit.cancel()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / unit),
    }
    return {**found, "failed": os.waitstatus_to_exitcode(status)} if status else found


def load(folder: Path, *, embedding_of: Path | None = None) -> Any:
    """Return the model in *folder*, computing in float32, with the embedding of another where one is named."""
    import mlx.core as mx

    from r1mac import mlx_lm_api
    from r1mac.engine.layers.compute import on_gpu, prepare_weights
    from r1mac.plan.compute import Compute

    model: Any = mlx_lm_api.load_lazily(folder, {})
    for _ in prepare_weights(model, Compute.FLOAT32 if on_gpu() else Compute.DEQUANTIZED):
        mx.clear_cache()
    if embedding_of is not None:
        model.model.embed_tokens = load(embedding_of).model.embed_tokens
    return model


def compared(
    folders: Iterable[Path], source: Path, sequences: Sequence[Sequence[int]], *, embedding_of: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the bytes of those of the models in *folders* that were made, and how far each is from *source*."""
    from r1mac.engine.divergence import compare

    reference = load(source)
    for folder in folders:
        if not (folder / "config.json").exists():
            continue
        *_, found = compare(load(folder, embedding_of=embedding_of), reference, sequences)
        yield {
            "what": folder.name,
            "bytes": sum(path.stat().st_size for path in folder.glob("model*.safetensors")),
            "kl_nats": round(found.kl_nats, 5),
            "same_top": round(found.same_top, 4),
            "perplexity": round(found.perplexity, 3),
            "reference_perplexity": round(found.reference_perplexity, 3),
        }
