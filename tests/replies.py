"""How replies end, for tests that have no model."""

from typing import Any

from r1mac.engine.events import Finished, FinishReason, GenerationStats


def finished(reason: FinishReason = "stop", *, stop: str | None = None, **stats: Any) -> Finished:
    """Return the end of a reply of one prompt token and one more; *stats* says what differs."""
    usual: dict[str, Any] = {
        "prompt_tokens": 1,
        "cached_tokens": 0,
        "generated_tokens": 1,
        "think_tokens": 0,
        "prefill_seconds": 0.0,
        "decode_seconds": 0.0,
        "prefill_peak_bytes": 0,
        "peak_bytes": 0,
    }
    return Finished(reason=reason, stop=stop, stats=GenerationStats(**{**usual, **stats}))
