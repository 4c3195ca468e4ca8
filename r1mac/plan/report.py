"""A memory plan as rows for a person and as data for a program."""

from dataclasses import asdict

from r1mac.catalog.arch import ArchSpec
from r1mac.machine.base import HardwareProfile
from r1mac.plan.fit import MemoryPlan
from r1mac.units import format_count, format_memory

_LIMIT_SOURCES = {
    "override": "set by iogpu.wired_limit_mb",
    "default": "macOS's default",
    "estimated": "macOS's default, estimated",
    "memory": "memory of this machine",
}


def as_rows(arch: ArchSpec, plan: MemoryPlan, hardware: HardwareProfile) -> list[tuple[str, str]]:
    """Return every term of the plan with its name."""
    verdict = "fits" if plan.fits else "does not fit"
    spare = abs(plan.budget_bytes - plan.total_bytes)
    cache = f"{format_memory(plan.kv_cache_bytes)} for {plan.context_tokens} tokens"
    limit = f"{format_memory(plan.limit_bytes)} ({_LIMIT_SOURCES[hardware.wired_limit_source]})"
    return [
        ("machine", f"{hardware.chip}, {format_memory(hardware.memory_bytes)}"),
        ("parameters", _parameters(arch)),
        ("weights", f"{format_memory(plan.weight_bytes)} ({plan.compute.value})"),
        ("KV cache", f"{cache} ({plan.kv_bytes_per_token:,} bytes each)"),
        (
            "prefill scratch",
            f"{format_memory(plan.prefill_scratch_bytes)} at {plan.prefill_step_tokens} tokens a step",
        ),
        ("total", format_memory(plan.total_bytes)),
        ("budget", f"{format_memory(plan.budget_bytes)} = {limit} - {format_memory(plan.reserve_bytes)} reserve"),
        ("verdict", f"{verdict}, {format_memory(spare)} {'to spare' if plan.fits else 'short'}"),
        ("longest context", f"{plan.max_context_tokens} tokens of the model's {arch.max_context_tokens}"),
    ]


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


def _parameters(arch: ArchSpec) -> str:
    total = format_count(arch.parameter_count)
    return total if arch.experts is None else f"{total}, {format_count(arch.active_parameter_count)} read per token"
