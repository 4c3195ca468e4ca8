"""A model's facts as rows for a person."""

from typing import Any

from r1mac.formats import quality
from r1mac.units import format_count, format_size


def as_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of every fact, sizes and counts as text."""
    rows = []
    for name, value in facts.items():
        if value is None or value in ([], {}):
            continue
        if name == "quality":
            rows += quality.as_rows(quality.from_data(value))
            continue
        rows.append((_LABELS.get(name, name.replace("_", " ")), _as_text(name, value)))
    return rows


_LABELS = {
    "parameter_count": "parameters",
    "active_parameter_count": "active parameters",
    "layer_count": "layers",
    "vocab_size": "vocabulary",
    "max_context_tokens": "longest context",
    "kv_bytes_per_token": "KV cache per token",
    "expert_count": "experts",
    "active_expert_count": "active experts",
    "size_bytes": "size",
    "bytes_by_type": "size by type",
    "size_bytes_by_bits": "sizes by bits",
    "source_repo": "original weights",
    "source_bytes": "original size",
    "ready_repos_by_bits": "ready by bits",
}


def _as_text(name: str, value: Any) -> str:  # noqa: PLR0911 - one line a kind
    match value:
        case dict() if name.endswith("_by_bits"):
            inner = name.removesuffix("_by_bits")
            return ", ".join(f"{bits}: {_as_text(inner, item)}" for bits, item in value.items())
        case dict() if name == "bytes_by_type":
            return ", ".join(f"{dtype} {format_size(count)}" for dtype, count in value.items())
        case dict() if name == "weights_by_width":
            return ", ".join(f"{share:.1%} of the weights at {width}" for width, share in value.items())
        case dict():
            return ", ".join(
                _as_text(key, item) if isinstance(item, dict) else f"{key.replace('_', ' ')} {item}"
                for key, item in value.items()
            )
        case list():
            return ", ".join(map(str, value))
        case int() if name.endswith("parameter_count"):
            return f"{format_count(value)} ({value:,})"
        case int() if name == "kv_bytes_per_token":
            return f"{value:,} bytes"
        case int() if name.endswith("_bytes"):
            return format_size(value)
    return str(value)
