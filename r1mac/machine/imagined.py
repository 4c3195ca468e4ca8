"""A Mac that is not here: made of its facts, or of the words in which a person says them."""

import re
from dataclasses import replace

from r1mac.errors import UnsupportedMachine
from r1mac.machine.base import WIRED_LIMIT_KEY, HardwareProfile
from r1mac.machine.chips import ChipFacts, find_chip, load_chips
from r1mac.machine.darwin import build_profile
from r1mac.units import GIB, format_memory

_MACOS = "26.6.2"
_EXAMPLE = '--mac "m4 max 40c 128gb"'
_CHIP = re.compile(r"\b(?:apple\s*)?(?P<family>[ma]\d{1,2})[\s-]*(?P<tier>pro|max|ultra)?\b")
# Each is looked for in what the ones before it left.
_PARTS = {
    "macos": re.compile(r"\b(?:macos|mac\s+os|os\s*x)\s*(\d{1,2}(?:\.\d{1,2}){0,2})\b"),
    "product": re.compile(r"\b(?:macbook\s*(?:pro|air|neo)?|mac\s*(?:studio|mini|pro)|imac)\b"),
    "cpu": re.compile(r"\b\d{1,2}[\s-]*(?:c|cores?)[\s-]*cpu\b"),
    "gpu": re.compile(r"\b(\d{1,3})[\s-]*(?:c|cores?|(?=gpu))[\s-]*(?:gpu)?(?:[\s-]*cores?)?\b"),
    "memory": re.compile(r"\b(\d{1,4})\s*(?:gb|gib|g)\b(?:\s*(?:of\s+)?(?:unified\s+)?(?:memory|ram)\b)?"),
}
_FILLERS = re.compile(r"\b(?:apple|mac|chip|with|and|a|an|the)\b|[\s,;/+()-]+")


def mac(
    chip: str, *, memory_gib: int, gpu_core_count: int | None = None, macos: str = _MACOS, wired_limit_mib: int = 0
) -> HardwareProfile:
    """Return the profile that a Mac with these facts would have.

    Raises:
        UnsupportedMachine: MLX cannot run on it.
    """
    sysctl_values = {
        "hw.memsize": str(memory_gib * GIB),
        "machdep.cpu.brand_string": chip,
        "hw.optional.arm64": "1",
        "kern.osproductversion": macos,
        WIRED_LIMIT_KEY: str(wired_limit_mib),
    }
    return build_profile(sysctl_values, gpu_core_count, "arm64")


def parse_mac(text: str) -> HardwareProfile:
    """Return the profile of the Mac that *text* names, such as ``"m3 ultra 512gb"`` or ``"M4 Max 40-core, 64 GB"``.

    The parts may come in any order. The GPU is filled in where chip and memory leave one in the table, the slower one
    where both are sold with it. macOS is 26 unless it is said.

    A chip that is not in the table is taken, without a bandwidth: memory is planned all the same. So is more
    memory than the table's chip is sold with, because Apple may sell it tomorrow; in both cases the wired limit
    is «estimated». A number of GPU cores that a known chip is not made with is refused: such chips do not change
    after they are made, so it is a slip, and it decides the bandwidth.

    Raises:
        UnsupportedMachine: *text* names no Apple chip, no memory or a GPU that does not exist, or has something
            that is not understood.
    """
    found, chip = _parse_words(text)
    rows = [row for row in load_chips() if row.chip == chip]
    if "memory" not in found or int(found["memory"]) == 0:
        raise UnsupportedMachine(
            f"{text!r} does not say how much memory that Mac has{_largest_memory(rows)}",
            hint=f'say it too, such as --mac "{_spoken(chip)} {_usual_gib(rows)}gb"',
        )
    memory_gib = int(found["memory"])
    gpu_core_count = _gpu_core_count(chip, rows, found.get("gpu"), memory_gib)
    profile = mac(chip, memory_gib=memory_gib, gpu_core_count=gpu_core_count, macos=found.get("macos", _MACOS))
    facts = find_chip(chip, gpu_core_count, profile.memory_bytes)
    if facts is None or facts.max_memory_bytes < profile.memory_bytes:
        return replace(profile, wired_limit_source="estimated")
    return profile


def _parse_words(text: str) -> tuple[dict[str, str], str]:
    """Return the numbers in *text* by part, and the chip's full name."""
    rest, found = text.lower(), {}
    for part, pattern in _PARTS.items():
        matches = list(pattern.finditer(rest))
        if len({match.groups() for match in matches}) > 1:
            raise UnsupportedMachine(
                f"{text!r} says two things: {' and '.join(repr(match[0].strip()) for match in matches)}",
                hint=f"describe one Mac, such as {_EXAMPLE}",
            )
        if matches and matches[0].groups():
            found[part] = matches[0][1]
        rest = pattern.sub(" ", rest)
    chips = list(_CHIP.finditer(rest))
    if not chips:
        raise UnsupportedMachine(f"{text!r} names no Apple chip", hint=f"describe a Mac, such as {_EXAMPLE}")
    unknown = _FILLERS.sub(" ", _CHIP.sub(" ", rest, count=1)).split()
    if unknown:
        raise UnsupportedMachine(
            f"{' '.join(unknown)!r} in {text!r} is not understood",
            hint=f"say chip, GPU cores, memory and macOS, such as {_EXAMPLE} or --mac 'm3 max 64gb macos 15.7'",
        )
    family, tier = chips[0]["family"].upper(), (chips[0]["tier"] or "").capitalize()
    return found, f"Apple {family} {tier}".rstrip()


def _gpu_core_count(chip: str, rows: list[ChipFacts], said: str | None, memory_gib: int) -> int | None:
    known = sorted(count for row in rows for count in row.gpu_core_counts)
    if said is None:
        facts = find_chip(chip, None, memory_gib * GIB)
        return facts.gpu_core_counts[0] if facts and len(facts.gpu_core_counts) == 1 else None
    if rows and int(said) not in known:
        raise UnsupportedMachine(
            f"the {chip} has {' or '.join(map(str, known))} GPU cores, not {said}",
            hint=f'use --mac "{_spoken(chip)} {known[-1]}c {memory_gib}gb", or leave the GPU out',
        )
    return int(said)


def _largest_memory(rows: list[ChipFacts]) -> str:
    if not rows:
        return ""
    largest = max(row.max_memory_bytes for row in rows)
    return f"; the {rows[0].chip} is sold with up to {format_memory(largest).replace('.0', '')}"


def _usual_gib(rows: list[ChipFacts]) -> int:
    return max((row.max_memory_bytes for row in rows), default=64 * GIB) // GIB


def _spoken(chip: str) -> str:
    return chip.removeprefix("Apple ").lower()
