"""What reading several tokens at once costs, beside reading one: measured once for each machine and model, and kept.

On some Macs four tokens cost as much as three steps of one token, on others little more than one (the matrix kernels
differ between chips and releases of MLX): only a measurement tells whether drafts pay.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mac import durable

if TYPE_CHECKING:
    from r1mac.engine.sampling import Sampler
    from r1mac.engine.transcript import Transcript

# Counts of tokens whose cost is measured.
WIDTHS = (1, 2, 4, 8)
# Each of the two rounds may take as long as so many single tokens.
_MOST_STEPS = 7.0
# The keys and values that are read grow with the context, and with them what each step costs.
_CONTEXT_GROWTH = 4
_LEAST_CONTEXT_TOKENS = 2048
_MOST_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds that a step takes, by the number of tokens that it reads; one token is always among them."""

    seconds: Mapping[int, float]

    def ratio(self, tokens: int) -> float:
        """Return the cost of reading *tokens* at once as a multiple of reading one.

        Between two measured counts it lies on a line, and beyond the last it grows as it did on average. More tokens
        never cost less: where they seem to, another program took the time of the fewer.
        """
        known = sorted(self.seconds)
        if tokens > known[-1]:
            return self._at(known[-1]) + (tokens - known[-1]) * self._slope(known)
        above = next(count for count in known if count >= tokens)
        if above == tokens:
            return self._at(above)
        below = max(count for count in known if count < tokens)
        share = (tokens - below) / (above - below)
        return self._at(below) * (1 - share) + self._at(above) * share

    def _slope(self, known: list[int]) -> float:
        if known[-1] == 1:
            return 1.0
        return (self._at(known[-1]) - 1) / (known[-1] - 1)

    def _at(self, tokens: int) -> float:
        return max(taken for count, taken in self.seconds.items() if count <= tokens) / self.seconds[1]


class CostBook:
    """The costs that were measured on this computer, in a small JSON file. What is damaged is measured again."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._costs = _read(path) if path else {}

    def get(self, key: str) -> StepCosts | None:
        """Return what was measured for *key*."""
        return self._costs.get(key)

    def put(self, key: str, costs: StepCosts) -> None:
        """Keep *costs*. A disk that takes nothing is no reason to lose a reply."""
        if self._path is None:
            self._costs[key] = costs
            return
        import json

        # Another process may have measured meanwhile.
        known = {**_read(self._path), **self._costs}
        known.pop(key, None)
        self._costs = dict([*known.items(), (key, costs)][-_MOST_ENTRIES:])
        data = {name: {str(n): value for n, value in each.seconds.items()} for name, each in self._costs.items()}
        with contextlib.suppress(OSError):
            durable.write_whole(self._path, json.dumps(data, indent=1))


class Gauge:
    """Times one model on one computer, unless that was done before.

    Args:
        book: where measurements are kept.
        machine: the computer, such as chip and number of GPU cores.
        fingerprint: of the model's folder.
        compute: the type that is computed in.
        widths: counts of tokens to time; the first is 1.
    """

    def __init__(
        self, book: CostBook, *, machine: str, fingerprint: str, compute: str, widths: Sequence[int] = WIDTHS
    ) -> None:
        self._book = book
        self._model = f"{machine}; {fingerprint}; {compute}"
        self._widths = widths

    def known(self, transcript: "Transcript", sampler: "Sampler") -> StepCosts | None:
        """Return what was measured for a transcript of this length and width."""
        return self._book.get(self._key(transcript, sampler))

    def measure(self, transcript: "Transcript", token_ids: Sequence[int], sampler: "Sampler") -> StepCosts:
        """Measure and keep it. *token_ids* is the text; the transcript is left as it was."""
        costs = measure(
            transcript, token_ids, lambda logits: sampler.choose(logits, len(token_ids)), widths=self._widths
        )
        self._book.put(self._key(transcript, sampler), costs)
        return costs

    def _key(self, transcript: "Transcript", sampler: "Sampler") -> str:
        return f"{self._model}; {_conditions(transcript.kv_bits, len(transcript), greedy=sampler.is_greedy)}"


def measure(
    transcript: "Transcript",
    token_ids: Sequence[int],
    choose: Callable[[Any], Any],
    *,
    widths: Sequence[int] = WIDTHS,
) -> StepCosts:
    """Time steps of several widths behind what *transcript* holds, and leave it as it was.

    Each width is timed twice at least and the fastest counts: the first time kernels may have to be built. Where
    reading several costs so much that it will hardly pay, wider ones are left out. In all it takes what some ten single
    tokens take.

    Args:
        transcript: of the model; nothing of it is being computed.
        token_ids: text to read, the latest last; neighbours, so that they ask for as many experts as drafts do.
        choose: logits ``[n, vocabulary]`` to tokens ``[n]``.
        widths: counts of tokens, the first 1.
    """
    import mlx.core as mx

    kept = len(transcript)

    def seconds(count: int) -> float:
        tokens = mx.array([token_ids[-1 - index % len(token_ids)] for index in reversed(range(count))])
        begun = time.perf_counter()
        mx.eval(choose(transcript.feed(tokens)))
        taken = time.perf_counter() - begun
        transcript.keep(kept)
        return taken

    mx.synchronize()
    found: dict[int, float] = {}
    try:
        for width in widths:
            if sum(found.values()) + _next_seconds(list(found.values())) > _MOST_STEPS * found.get(1, math.inf):
                break
            found[width] = seconds(width)
            # Worse than one by one: something was built or fetched for it the first time.
            if found[width] > width * found[1]:
                found[width] = min(found[width], seconds(width))
        # And back again, so that a machine that grows slower or faster meanwhile favours neither end.
        for width in reversed(found):
            found[width] = min(found[width], seconds(width))
    finally:
        transcript.keep(kept)
    return StepCosts(found)


def _next_seconds(taken: list[float]) -> float:
    """Return what the next width will take, if that grows as it did."""
    if len(taken) < 2:  # noqa: PLR2004 - two make a growth
        return sum(taken)
    return taken[-1] * max(1.0, taken[-1] / taken[-2])


def _conditions(kv_bits: int, context_tokens: int, *, greedy: bool) -> str:
    """Return what else a step's cost depends on: it is measured again where that changes."""
    reach = _LEAST_CONTEXT_TOKENS
    while reach < context_tokens:
        reach *= _CONTEXT_GROWTH
    # To sample costs something for each token.
    choice = "greedy" if greedy else "sampled"
    return f"mlx {_mlx_version()}; kv {kv_bits}; up to {reach} tokens; {choice}"


@cache
def _mlx_version() -> str:
    from importlib.metadata import version

    return version("mlx")


def _read(path: Path) -> dict[str, StepCosts]:
    return {key: costs for key, value in durable.read_object(path).items() if (costs := _costs(value)) is not None}


def _costs(value: Any) -> StepCosts | None:
    """Return the costs in a JSON value, or None where it holds no such thing."""
    if not isinstance(value, dict) or "1" not in value:
        return None
    seconds: dict[int, float] = {}
    for count, taken in value.items():
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            return None
        if isinstance(taken, bool) or not isinstance(taken, int | float) or not 0 < taken < math.inf:
            return None
        seconds[int(count)] = float(taken)
    return StepCosts(seconds)
