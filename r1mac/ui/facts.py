"""A model's facts as rows for a person."""

from typing import Any

from r1mac.units import format_count, format_size


def as_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of every fact, sizes and counts as text."""
    rows = []
    for name, value in facts.items():
        if value is None or value in ([], {}):
            continue
        label = name.removesuffix("_bytes").removesuffix("_count").replace("_", " ")
        rows.append((label, _as_text(name, value)))
    return rows


def _as_text(name: str, value: Any) -> str:  # noqa: PLR0911 - one line a kind
    match value:
        case dict() if name.endswith("_by_bits"):
            inner = name.removesuffix("_by_bits")
            return ", ".join(f"{bits}: {_as_text(inner, item)}" for bits, item in value.items())
        case dict() if name == "bytes_by_type":
            return ", ".join(f"{dtype} {format_size(count)}" for dtype, count in value.items())
        case dict():
            return ", ".join(f"{key.replace('_', ' ')} {item}" for key, item in value.items())
        case list():
            return ", ".join(map(str, value))
        case int() if name.endswith("parameter_count"):
            return f"{format_count(value)} ({value:,})"
        case int() if name == "kv_bytes_per_token":
            return f"{value:,} bytes"
        case int() if name.endswith("_bytes"):
            return format_size(value)
    return str(value)
