"""What the server measures of its replies, as Prometheus histograms."""

from prometheus_client import CollectorRegistry, Histogram

from r1mac.engine.events import GenerationStats

# Seconds: from a small model's first word to a long thought of a large one.
_FIRST_TEXT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_REPLY_BUCKETS = (0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_RATE_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class Measures:
    """How long replies take and how fast they are written. Lives on the event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._first_text = Histogram(
            "r1mac_first_text_seconds",
            "Seconds from a request to the first text of its reply, the queue included",
            buckets=_FIRST_TEXT_BUCKETS,
            registry=self.registry,
        )
        self._whole = Histogram(
            "r1mac_reply_seconds",
            "Seconds from a request to the end of its reply",
            buckets=_REPLY_BUCKETS,
            registry=self.registry,
        )
        self._rate = Histogram(
            "r1mac_reply_tokens_per_second",
            "Tokens written for each second of one reply",
            buckets=_RATE_BUCKETS,
            registry=self.registry,
        )

    def began(self, seconds: float) -> None:
        """Count the first text of a reply, *seconds* after it was asked for."""
        self._first_text.observe(seconds)

    def ended(self, seconds: float, stats: GenerationStats) -> None:
        """Count a whole reply, *seconds* after it was asked for."""
        self._whole.observe(seconds)
        if stats.decode_tokens_per_s is not None:
            self._rate.observe(stats.decode_tokens_per_s)
