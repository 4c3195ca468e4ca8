"""What tests of drafting share: tiny models, drafters that know what comes, machines of known cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain as plain_recipe
from r1mac.convert.sources import open_source
from r1mac.engine.decode import decode
from r1mac.engine.drafts.speculation import Drafter, Speculation
from r1mac.engine.drafts.step_costs import CostBook, Gauge, StepCosts
from r1mac.engine.request import Sampling
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript
from tests.checkpoints import write_checkpoint
from tests.sessions import load

VOCABULARY = 320
# Reading several tokens costs hardly more than reading one.
FLAT = StepCosts({1: 1.0, 16: 1.5})
LINEAR = StepCosts({1: 1.0, 2: 2.0})
# A text that repeats itself, so that there is something to look up.
TEXT = [*range(20, 60), *range(70, 100), *range(20, 58)]
GREEDY = Sampling(temperature=0)


class FixedGauge(Gauge):
    """A machine whose costs are known."""

    def __init__(self, costs: StepCosts) -> None:
        super().__init__(CostBook(), machine="", fingerprint="", compute="")
        self._costs = costs

    def known(self, transcript: Transcript, sampler: Sampler) -> StepCosts:
        return self._costs


class Prophet:
    """A drafter that knows some text, right or wrong, and is sure of it."""

    def __init__(self, text: Sequence[int], *, chance: float = 0.95) -> None:
        self._text, self._chance = list(text), chance
        self._at = 0

    def begin(self, token_ids: Sequence[int]) -> None:
        self._at = len(token_ids)

    def take(self, token_ids: Sequence[int], drafted: int) -> None:
        self._at += len(token_ids)

    def chances(self, most: int, *, skipped: int = 0) -> list[float]:
        return [self._chance] * max(0, min(most, len(self._text) - self._at - skipped))

    def propose(self, count: int, sampler: Sampler, position: int) -> list[int]:
        return self._text[self._at : self._at + count]

    def drafting_seconds(self, sampler: Sampler) -> float:
        return 0.0


class Counted:
    """A model that counts its steps and the tokens that they read."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.steps = self.tokens = 0

    def __call__(self, tokens: mx.array, **options: Any) -> mx.array:
        self.steps += 1
        self.tokens += tokens.shape[1]
        return self._model(tokens, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def make_model(folder: Path, config: Mapping[str, Any], *, weights: Mapping[str, mx.array] | None = None) -> nn.Module:
    """Return a tiny model of a shape, in float32."""
    source = write_checkpoint(folder / "source", config, weights=weights)
    (folder / "model").mkdir()
    for _ in convert(open_source(source), plain_recipe(bits=16, group_size=64), folder / "model"):
        pass
    return load(folder / "model").model


def read(model: nn.Module, text: Sequence[int] = TEXT, *, kv_bits: int = 16) -> Transcript:
    transcript = Transcript(model, prefill_step_tokens=64, kv_bits=kv_bits)
    for _ in transcript.prefill(text[:-1]):
        pass
    return transcript


def plain(model: nn.Module, sampling: Sampling, limit: int, text: Sequence[int] = TEXT, kv_bits: int = 16) -> list[int]:
    return list(decode(read(model, text, kv_bits=kv_bits), text[-1], Sampler(sampling), [], limit))


def drafted(
    model: nn.Module,
    sampling: Sampling,
    limit: int,
    drafter: Drafter,
    *,
    costs: StepCosts = FLAT,
    text: Sequence[int] = TEXT,
    kv_bits: int = 16,
) -> tuple[list[int], Speculation]:
    speculation = Speculation(drafter, FixedGauge(costs))
    transcript = read(model, text, kv_bits=kv_bits)
    return list(speculation.decode(transcript, text[-1], Sampler(sampling), [], limit)), speculation
