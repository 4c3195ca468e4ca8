"""Bytes, counts and durations to text: the only place that divides by 2**30 or 10**9.

Two families, never mixed: *memory* is counted in powers of two (GiB, as Apple
counts RAM), *files and downloads* in powers of ten (GB, as disks and networks do).
"""

import re

KIB, MIB, GIB = 2**10, 2**20, 2**30
KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12


def format_memory(count_bytes: int) -> str:
    """Return *count_bytes* of memory as text in powers of two, such as ``"37.0 GiB"``."""
    return _scaled(count_bytes, ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")))


def format_size(count_bytes: int) -> str:
    """Return the size of a file or download as text in powers of ten, such as ``"39.7 GB"``."""
    return _scaled(count_bytes, ((TB, "TB"), (GB, "GB"), (MB, "MB"), (KB, "kB")))


def format_count(count: int) -> str:
    """Return a number of parameters as text, such as ``"671B"`` or ``"1.8B"``."""
    for unit, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            value = count / unit
            return f"{value:.0f}{suffix}" if value >= 100 else f"{value:.1f}{suffix}"  # noqa: PLR2004
    return str(count)


def format_rate(per_s: float) -> str:
    """Return a number a second without its unit, such as ``"7.4"`` or ``"213"``."""
    return f"{per_s:.1f}" if round(per_s, 1) < 10 else f"{per_s:.0f}"  # noqa: PLR2004


def format_seconds(seconds: float) -> str:
    """Return a duration as text, such as ``"0.4 s"``, ``"3 min 20 s"`` or ``"2 h 05 min"``."""
    if round(seconds, 1) < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_about(seconds: float) -> str:
    """Return an estimated duration without more digits than it deserves: ``"55 s"``, ``"22 min"``, ``"1 h 50 min"``."""
    if seconds < 99.5:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:  # noqa: PLR2004
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60 // 5 * 5:02d} min"


def parse_seconds(text: str) -> float:
    """Return a duration in seconds, such as ``"90"``, ``"90s"``, ``"2m"``, ``"1h30m"`` or ``"3 min 20 s"``.

    Raises:
        ValueError: it is no duration above zero; the message is for a person.
    """
    words = text.strip().lower()
    match = re.fullmatch(
        r"(?:(?P<h>\d{1,6}(?:\.\d{1,6})?)\s*h(?:ours?|r)?)?\s*(?:(?P<m>\d{1,6}(?:\.\d{1,6})?)\s*m(?:in(?:utes?)?)?)?\s*"
        r"(?:(?P<s>\d{1,9}(?:\.\d{1,6})?)\s*(?:s(?:ec(?:onds?)?)?)?)?",
        words,
    )
    # «2m30» could mean two things.
    clear = match is not None and not (match["s"] and (match["h"] or match["m"]) and words[-1].isdigit())
    seconds = sum(scale * float(match[key] or 0) for key, scale in (("h", 3600), ("m", 60), ("s", 1))) if match else 0
    if not clear or seconds <= 0:
        raise ValueError(f"{text!r} is no duration; say seconds, or for example 90s, 2m or 1h30m")
    return float(seconds)


def _scaled(count_bytes: int, scale: tuple[tuple[int, str], ...]) -> str:
    for unit, suffix in scale:
        if abs(count_bytes) >= unit:
            return f"{count_bytes / unit:.1f} {suffix}"
    return f"{count_bytes} B"
