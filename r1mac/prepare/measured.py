"""What runs on this very computer showed beside what was planned and forecast for them, kept for the next plans.

The formulas' attention terms were measured on a CPU; Metal's kernels fuse some of them. The first real run on a
Mac says how far off that is there, and the forecast of speed learns from each run.
"""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from r1mac import durable, paths
from r1mac.catalog.arch import ArchSpec
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import MemoryPlan
from r1mac.plan.memory import kv_cache_bytes, prompt_scratch_bytes
from r1mac.plan.speed import Calibration, Speed, calibrate
from r1mac.units import GIB, MIB

if TYPE_CHECKING:
    from r1mac.engine.events import GenerationStats
    from r1mac.prepare.planning import Judgement

# Less than this is told from the rest of the process no more.
_TELLING_SCRATCH_BYTES = 64 * MIB
_TELLING_TOKENS = 64
# Of the tokens; with more of them drafted a run was faster than the model is.
_DRAFTED_SHARE = 0.02
# A real run is off by little; more than this is another program's doing.
_LEAST_FACTOR, _MOST_FACTOR = 0.7, 3.0


class Measured(NamedTuple):
    """What is known of one computer.

    Attributes:
        calibration: of the forecast of speed; None before the first run.
        scratch_factors: prefill scratch as a multiple of the formula's, by model type.
    """

    calibration: Calibration | None = None
    scratch_factors: Mapping[str, float] = {}

    def scratch_factor(self, arch: ArchSpec) -> float:
        """Return the factor for a model of that shape."""
        return self.scratch_factors.get(arch.model_type, 1.0)


def remember(judgement: "Judgement", stats: "GenerationStats") -> None:
    """Keep what a run of *judgement*'s plan showed on this computer."""
    if judgement.hardware.system != "macos":
        return
    known = load_measured(judgement.hardware)
    learned = learn(known, judgement.wish.arch, judgement.hardware, judgement.plan, judgement.speed, stats)
    if learned != known:
        save_measured(judgement.hardware, learned)


def load_measured(hardware: HardwareProfile, path: Path | None = None) -> Measured:
    """Return what is known of the computer *hardware*; nothing where the file is missing or damaged."""
    # Only Metal's numbers are worth a correction: a CPU's were measured, and no speed is forecast for one.
    if hardware.system != "macos":
        return Measured()
    entry = durable.read_object(path or paths.measured_file()).get(_key(hardware))
    if not isinstance(entry, dict):
        return Measured()
    factors = entry.get("scratch_factors")
    kept = {name: _clamped(value) for name, value in factors.items()} if isinstance(factors, dict) else {}
    return Measured(calibration=_calibration(entry.get("speed")), scratch_factors=kept)


def learn(
    known: Measured,
    arch: ArchSpec,
    hardware: HardwareProfile,
    plan: MemoryPlan,
    speed: Speed | None,
    stats: "GenerationStats",
) -> Measured:
    """Return what is known after a run with *stats*; unchanged where the run was too short to tell.

    Args:
        known: what was known when the run was planned.
        arch: the model's shape.
        hardware: the computer.
        plan: the run's plan.
        speed: its forecast, if there was one.
        stats: what it was.
    """
    factors = dict(known.scratch_factors)
    if hardware.fused_attention and (factor := _scratch_factor(arch, plan, stats)) is not None:
        factors[arch.model_type] = factor
    calibration = known.calibration
    decode = stats.decode_tokens_per_s
    written_here = stats.generated_tokens - stats.earlier_tokens
    plain = stats.accepted_draft_tokens <= written_here * _DRAFTED_SHARE
    if speed is not None and decode is not None and plain and written_here >= _TELLING_TOKENS:
        read_tokens = stats.prompt_tokens - stats.cached_tokens
        calibration = calibrate(
            speed,
            decode_tokens_per_s=decode,
            context_tokens=stats.prompt_tokens + stats.generated_tokens // 2,
            prefill_tokens_per_s=stats.prefill_tokens_per_s if stats.cached_tokens == 0 else None,
            prompt_tokens=read_tokens,
        )
    return Measured(calibration=calibration, scratch_factors=factors)


def save_measured(hardware: HardwareProfile, measured: Measured, path: Path | None = None) -> None:
    """Keep *measured* for the computer *hardware*. A disk that takes nothing is no reason to lose an answer."""
    import json

    path = path or paths.measured_file()
    data = durable.read_object(path)
    data[_key(hardware)] = {
        "speed": list(measured.calibration) if measured.calibration else None,
        "scratch_factors": dict(measured.scratch_factors),
    }
    with contextlib.suppress(OSError):
        durable.write_whole(path, json.dumps(data, indent=2))


def _scratch_factor(arch: ArchSpec, plan: MemoryPlan, stats: "GenerationStats") -> float | None:
    """Return the measured prefill scratch as a multiple of the formula's, or None where it tells nothing."""
    if stats.cached_tokens or stats.earlier_tokens or plan.draft_bytes:
        return None
    planned = prompt_scratch_bytes(
        arch,
        step_tokens=plan.prefill_step_tokens,
        prompt_tokens=stats.prompt_tokens,
        fused_attention=True,
        kv_bits=plan.kv_bits,
    )
    if planned < _TELLING_SCRATCH_BYTES:
        return None
    held = plan.weight_bytes + kv_cache_bytes(arch, stats.prompt_tokens, kv_bits=plan.kv_bits)
    return _clamped((stats.prefill_peak_bytes - held) / planned)


def _calibration(ratios: Any) -> Calibration | None:
    if not isinstance(ratios, list) or len(ratios) != len(Calibration()):
        return None
    return Calibration(*(_clamped(ratio) for ratio in ratios))


def _clamped(factor: Any) -> float:
    if not isinstance(factor, int | float) or not math.isfinite(factor):
        return 1.0
    return min(_MOST_FACTOR, max(_LEAST_FACTOR, float(factor)))


def _key(hardware: HardwareProfile) -> str:
    return f"{hardware.chip}, {hardware.gpu_core_count} GPU cores, {hardware.memory_bytes // GIB} GiB"
