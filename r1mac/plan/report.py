"""A memory plan and a forecast as rows for a person and as data for a program."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from r1mac.catalog.arch import ArchSpec
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import TYPICAL_PROMPT_TOKENS, MemoryPlan
from r1mac.units import format_about, format_count, format_memory, format_rate

if TYPE_CHECKING:
    from r1mac.plan.speed import Speed

_BASES = {
    "measured": "forecast from runs on this chip",
    "kin": "forecast from its relatives: no run on this chip is known",
    "calibrated": "forecast from runs on this very machine",
}

UNKNOWN_CHIP = "r1mac does not know this chip"


def as_rows(arch: ArchSpec, plan: MemoryPlan, hardware: HardwareProfile, *, binding: str) -> list[tuple[str, str]]:
    """Return every term of the plan with its name; *binding* is what decides how long the context can be."""
    verdict = "fits" if plan.fits else "does not fit"
    spare = abs(plan.budget_bytes - plan.total_bytes)
    cache = f"{format_memory(plan.kv_cache_bytes)} for {plan.context_tokens} tokens"
    cache += f" of {plan.parallel} replies and a copy" if plan.parallel > 1 else ""
    width = "" if plan.kv_bits == 16 else f" at {plan.kv_bits} bits"  # noqa: PLR2004
    source = hardware.wired_limit_origin
    if plan.limit_bytes < hardware.wired_limit_bytes:
        source = f"the most of the {format_memory(hardware.wired_limit_bytes)} that are set: macOS needs 4 GiB"
    limit = f"{format_memory(plan.limit_bytes)} ({source})"
    return [
        machine_row(hardware),
        ("parameters", _parameters(arch)),
        ("weights", f"{format_memory(plan.weight_bytes)} ({plan.compute.value})"),
        ("KV cache", f"{cache}{width} ({plan.kv_bytes_per_token:,} bytes each)"),
        (
            "prefill scratch",
            f"{format_memory(plan.prefill_scratch_bytes)} at {plan.prefill_step_tokens} tokens a step",
        ),
        ("total", format_memory(plan.total_bytes)),
        ("budget", f"{format_memory(plan.budget_bytes)} = {limit} - {format_memory(plan.reserve_bytes)} reserve"),
        ("verdict", f"{verdict}, {format_memory(spare)} {'to spare' if plan.fits else 'short'}"),
        ("longest context", f"{plan.max_context_tokens} tokens; what binds is {binding}"),
    ]


def speed_rows(
    speed: "Speed | None", plan: MemoryPlan, hardware: HardwareProfile, *, answer_tokens: int
) -> list[tuple[str, str]]:
    """Return the forecast: rates, and the time that thought and answer of *answer_tokens* take."""
    if speed is None:
        known = hardware.system == "macos" and not hardware.virtual
        return [("speed", f"no forecast: {UNKNOWN_CHIP if known else 'only real Macs are forecast'}")]
    full = f"{format_rate(speed.decode_tokens_per_s(plan.context_tokens))} at {plan.context_tokens}"
    answer = f"{answer_tokens} tokens of thought and answer"
    seconds = answer_seconds(speed, plan, answer_tokens)
    about = f"{answer} do not fit this context" if seconds is None else f"about {format_about(seconds)} for {answer}"
    prefill = format_rate(speed.prefill_tokens_per_s(TYPICAL_PROMPT_TOKENS))
    return [
        ("decode", f"{format_rate(speed.decode_tokens_per_s(0))} tokens/s with an empty context, {full} tokens"),
        ("prefill", f"{prefill} tokens/s for a prompt of {TYPICAL_PROMPT_TOKENS} tokens"),
        ("typical answer", about),
        ("how sure", _BASES[speed.basis]),
    ]


def answer_seconds(speed: "Speed", plan: MemoryPlan, answer_tokens: int) -> float | None:
    """Return how long a typical answer takes, or None where the longest context has no room for it."""
    if TYPICAL_PROMPT_TOKENS + answer_tokens > plan.max_context_tokens:
        return None
    return speed.answer_seconds(prompt_tokens=TYPICAL_PROMPT_TOKENS, generated_tokens=answer_tokens)


def as_data(arch: ArchSpec, plan: MemoryPlan, hardware: HardwareProfile) -> dict[str, object]:
    """Return the plan and the machine as JSON types; every name carries its unit."""
    return {
        "parameter_count": arch.parameter_count,
        "active_parameter_count": arch.active_parameter_count,
        **asdict(plan),
        "compute": plan.compute.value,
        "total_bytes": plan.total_bytes,
        "budget_bytes": plan.budget_bytes,
        "fits": plan.fits,
        "machine": asdict(hardware),
    }


def speed_data(speed: "Speed | None", plan: MemoryPlan, *, answer_tokens: int) -> dict[str, object] | None:
    """Return the forecast as JSON types; None where there is none."""
    if speed is None:
        return None
    return {
        "decode_tokens_per_s": speed.decode_tokens_per_s(0),
        "decode_tokens_per_s_at_full_context": speed.decode_tokens_per_s(plan.context_tokens),
        "prefill_tokens_per_s": speed.prefill_tokens_per_s(TYPICAL_PROMPT_TOKENS),
        "prompt_tokens": TYPICAL_PROMPT_TOKENS,
        "answer_tokens": answer_tokens,
        "answer_seconds": answer_seconds(speed, plan, answer_tokens),
        "basis": speed.basis,
    }


def machine_row(hardware: HardwareProfile) -> tuple[str, str]:
    """Return the computer that the plan is for, with its name."""
    cores = f" with {hardware.gpu_core_count} GPU cores" if hardware.gpu_core_count else ""
    macos = f", macOS {'.'.join(map(str, hardware.macos))}" if hardware.macos else ""
    return "machine", f"{hardware.chip}{cores}, {format_memory(hardware.memory_bytes)}{macos}"


def _parameters(arch: ArchSpec) -> str:
    total = format_count(arch.parameter_count)
    return total if arch.experts is None else f"{total}, {format_count(arch.active_parameter_count)} read per token"
