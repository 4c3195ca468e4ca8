"""``/metrics`` in Prometheus' text format, and ``/r1mac/state``: the worker's state for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac.server.measures import Measures
from r1mac.server.state import WorkerLike, WorkerState

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GAUGES = {
    "running": ("replies_running", "Replies that are being written"),
    "waiting": ("replies_waiting", "Requests that wait for a place"),
    "queue_limit": ("queue_limit", "Requests that may wait"),
    "parallel": ("parallel", "Replies that may be written at once"),
    "tokens_per_s": ("tokens_per_second", "Tokens that all replies together write for each second lately"),
    "context_tokens": ("context_tokens", "Longest conversation that memory is planned for"),
    "weight_bytes": ("weight_bytes", "Memory planned for the weights"),
    "cache_bytes": ("cache_bytes", "Memory planned for full contexts"),
    "scratch_bytes": ("scratch_bytes", "Memory planned for reading a prompt"),
    "used_bytes": ("used_bytes", "Memory that MLX holds"),
    "budget_bytes": ("budget_bytes", "Memory that the plan may use"),
    "limit_bytes": ("limit_bytes", "Memory that the GPU may use"),
}
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens, those from a cache included"),
    "cached_tokens": ("cached_tokens", "Prompt tokens from a cache"),
    "written_tokens": ("written_tokens", "Tokens written, thoughts included"),
    "think_tokens": ("think_tokens", "Tokens of thoughts"),
    "failed": ("replies_failed", "Requests that came to nothing"),
}


def routes(worker: WorkerLike, measures: Measures) -> list[Route]:
    """Return ``/metrics`` and ``/r1mac/state``."""
    measures.registry.register(_StateCollector(worker))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(measures.registry), media_type=_CONTENT_TYPE)

    async def state(_: Request) -> Response:
        return JSONResponse(as_json(worker.state()))

    return [Route("/metrics", metrics, methods=["GET"]), Route("/r1mac/state", state, methods=["GET"])]


def as_json(state: WorkerState) -> dict[str, Any]:
    """Return the state's fields; a moment of the monotonic clock means nothing to others and is left out."""
    body = asdict(state)
    del body["progress_at_s"]
    return body


class _StateCollector(Collector):
    """The worker's state at the moment of asking."""

    def __init__(self, worker: WorkerLike) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """Yield what is known."""
        state = self._worker.state()
        for field, (name, text) in _GAUGES.items():
            value = getattr(state, field)
            if value is not None:
                yield GaugeMetricFamily(f"r1mac_{name}", text, value=value)
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"r1mac_{name}", text, value=getattr(state, field))
        ended = CounterMetricFamily("r1mac_replies_ended", "Replies that came to an end, by reason", labels=["reason"])
        for reason, count in state.finished.items():
            ended.add_metric([reason], count)
        yield ended
        loaded = GaugeMetricFamily("r1mac_model_loaded", "1 for the model that is in memory", labels=["model"])
        if state.model is not None:
            loaded.add_metric([state.model], 1)
        yield loaded
