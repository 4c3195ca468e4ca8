"""Facts of Apple's chips that no command of macOS tells: chips.csv, read once."""

import functools
from dataclasses import dataclass

from r1mac import paths
from r1mac.units import GB, GIB

_COLUMNS = ("chip", "gpu_core_counts", "memory_bandwidth_gb_per_s", "max_memory_gib", "year", "verified")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipFacts:
    """One row of chips.csv. Max chips have two rows: the bandwidth depends on the GPU.

    Attributes:
        chip: Apple's name, such as ``"Apple M3 Max"``.
        gpu_core_counts: the GPUs that this row is about.
        memory_bandwidth_bytes_per_s: as Apple states it; what programs reach is less.
        max_memory_bytes: the most that Apple sells it with.
        year: of the first Mac with it.
        verified: whether the numbers were seen in a source that quotes Apple, not only in someone's table.
    """

    chip: str
    gpu_core_counts: tuple[int, ...]
    memory_bandwidth_bytes_per_s: int
    max_memory_bytes: int
    year: int
    verified: bool


def find_chip(chip: str, gpu_core_count: int | None, memory_bytes: int) -> ChipFacts | None:
    """Return the facts of *chip*, or None for one that is not in the table, such as next year's.

    Where the number of GPU cores does not choose among a chip's rows, because it is unknown or new,
    the memory does if only one row reaches *memory_bytes*; else the slowest row is taken.
    """
    name = chip.strip().removesuffix(" (Virtual)")
    rows = [row for row in load_chips() if row.chip == name]
    same_gpu = [row for row in rows if gpu_core_count in row.gpu_core_counts]
    large_enough = [row for row in rows if row.max_memory_bytes >= memory_bytes]
    candidates = same_gpu or large_enough or rows
    return min(candidates, key=lambda row: row.memory_bandwidth_bytes_per_s, default=None)


@functools.cache
def load_chips() -> tuple[ChipFacts, ...]:
    """Return all rows of chips.csv.

    Raises:
        ValueError: a row is wrong; the text names its line.
    """
    return parse_chips(paths.shipped("machine", "chips.csv").read_text(encoding="utf-8"))


def parse_chips(text: str) -> tuple[ChipFacts, ...]:
    """Return the rows of *text*, a table as in chips.csv: no cell holds a comma or a quote.

    Raises:
        ValueError: a row is wrong; the text names its line.
    """
    rows: list[ChipFacts] = []
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if number == 1:
                _check_header(line)
                continue
            row = _parse_row(line)
            keys = {(row.chip, count) for count in row.gpu_core_counts}
            if again := keys & seen:
                raise ValueError(f"{row.chip} with {min(again)[1]} GPU cores is there already")
        except (ValueError, OverflowError) as error:
            raise ValueError(f"chips.csv line {number}: {error}") from error
        seen |= keys
        rows.append(row)
    return tuple(rows)


def _check_header(line: str) -> None:
    if tuple(line.split(",")) != _COLUMNS:
        raise ValueError(f"the columns must be {','.join(_COLUMNS)}")


def _parse_row(line: str) -> ChipFacts:
    cells = line.split(",")
    if len(cells) != len(_COLUMNS):
        raise ValueError(f"{len(cells)} cells instead of {len(_COLUMNS)}")
    chip, gpu_core_counts, bandwidth_gb_per_s, memory_gib, year, verified = cells
    if not chip.startswith("Apple "):
        raise ValueError(f"{chip!r} is not a name such as 'Apple M1'")
    if verified not in {"yes", "secondary"}:
        raise ValueError(f"verified is {verified!r}, not yes or secondary")
    row = ChipFacts(
        chip=chip,
        gpu_core_counts=tuple(int(count) for count in gpu_core_counts.split("|")),
        memory_bandwidth_bytes_per_s=round(float(bandwidth_gb_per_s) * GB),
        max_memory_bytes=int(memory_gib) * GIB,
        year=int(year),
        verified=verified == "yes",
    )
    if min(*row.gpu_core_counts, row.memory_bandwidth_bytes_per_s, row.max_memory_bytes, row.year) <= 0:
        raise ValueError("every number must be above 0")
    return row
