"""Published runs of tests/vectors/speeds.csv, and what is forecast for them."""

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from r1mac.catalog.arch import ArchSpec, parse_arch
from r1mac.catalog.models import all_models
from r1mac.machine.base import HardwareProfile
from r1mac.machine.imagined import mac
from r1mac.plan.memory import Quantization, kv_bytes_per_token, weight_bytes
from r1mac.plan.speed import Speed, forecast

VECTORS = Path(__file__).parent / "vectors"
# What a run with a «short» prompt has in its cache, about: question and half of the answer.
SHORT_CONTEXT_TOKENS = 256


class Run(NamedTuple):
    """One published run.

    Attributes:
        left_out: why it is no target; empty for those that are.
        fitted: whether the constants were fitted to it; a target that was not shows how the forecast does elsewhere.
    """

    model: str
    bits: int | None
    chip: str
    gpu_cores: int | None
    memory_gib: int | None
    context_tokens: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    engine: str
    fitted: bool
    left_out: str
    source: str

    @property
    def name(self) -> str:
        """The run in a few words."""
        cores = f" {self.gpu_cores}c" if self.gpu_cores else ""
        return f"{self.model} {self.bits} bits, {self.chip.removeprefix('Apple ')}{cores}, {self.context_tokens} tokens"


@cache
def load_runs() -> tuple[Run, ...]:
    """Return every row of the table."""
    with (VECTORS / "speeds.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_parse_run(row) for row in csv.DictReader(file))


@cache
def arch_of(model: str) -> ArchSpec:
    """Return the shape of a model of the catalog or of tests/vectors/speed_shapes.json."""
    shapes = json.loads((VECTORS / "speed_shapes.json").read_text(encoding="utf-8"))
    return {spec.key: spec.arch for spec in all_models()}.get(model) or parse_arch(shapes[model])


def mac_of(run: Run) -> HardwareProfile:
    """Return the Mac of *run*."""
    return mac(run.chip, memory_gib=run.memory_gib or 64, gpu_core_count=run.gpu_cores)


def costs_of(run: Run) -> dict[str, Any]:
    """Return the arguments of a forecast that the weights and the cache of *run* make."""
    arch = arch_of(run.model)
    stored_bytes = weight_bytes(arch, Quantization(bits=run.bits or 4))
    return {"arch": arch, "stored_bytes": stored_bytes, "kv_bytes_per_token": kv_bytes_per_token(arch)}


def forecast_of(run: Run) -> Speed:
    """Return what is forecast for *run*."""
    speed = forecast(hardware=mac_of(run), **costs_of(run))
    assert speed is not None, f"no forecast for {run.name}"
    return speed


def decode_error(run: Run) -> float:
    """Return forecast / measured - 1 of the tokens written per second."""
    assert run.decode_tokens_per_s is not None
    return forecast_of(run).decode_tokens_per_s(run.context_tokens) / run.decode_tokens_per_s - 1


def prefill_error(run: Run) -> float:
    """Return forecast / measured - 1 of the tokens read per second."""
    assert run.prefill_tokens_per_s is not None
    return forecast_of(run).prefill_tokens_per_s(run.context_tokens) / run.prefill_tokens_per_s - 1


def _parse_run(row: dict[str, str]) -> Run:
    return Run(
        model=row["model"],
        bits=int(row["bits"]) if row["bits"] else None,
        chip=row["chip"],
        gpu_cores=int(row["gpu_cores"]) if row["gpu_cores"] else None,
        memory_gib=int(row["memory_gib"]) if row["memory_gib"] else None,
        context_tokens=int(row["context_tokens"] or SHORT_CONTEXT_TOKENS),
        prefill_tokens_per_s=float(row["prefill_tokens_per_s"]) if row["prefill_tokens_per_s"] else None,
        decode_tokens_per_s=float(row["decode_tokens_per_s"]) if row["decode_tokens_per_s"] else None,
        engine=row["engine"],
        fitted=row["fitted"] == "yes",
        left_out=row["left_out"],
        source=row["source"],
    )
