"""The steps of a training: rates, balance of experts, and what is said on the way."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng
from tokenizers import Tokenizer

from scripts.tiny import checkpoint
from scripts.tiny.batches import batches
from scripts.tiny.checkpoint import Spent
from scripts.tiny.model import CONFIG, Batch, Losses, TinyModel, new_model
from scripts.tiny.optimizer import Optimizer

_WARM_UP_STEPS = 60
_LAST_RATE = 0.02
# The share of the steps in which the rate falls from its full height, and the height from which it falls again.
_FIRST_FALL, _SECOND_HEIGHT = 8 / 11, 0.4
# How far a correction moves in a step: 0.001 in DeepSeek-V3's report, whose steps are many more.
_BALANCE_RATE = 0.002
_SAID_STEPS = 50
_SAVED_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A training to go through.

    Attributes:
        steps: how many.
        batch_tokens: of each.
        seed: of weights and sums.
        saved: where the checkpoint is.
        config: the model's, as config.json has it.
    """

    steps: int
    batch_tokens: int
    seed: int
    saved: Path
    config: Mapping[str, Any] = field(default_factory=lambda: CONFIG)

    @property
    def settings(self) -> str:
        """What has to be the same for a checkpoint to be gone on with."""
        return f"{self.steps} steps of {self.batch_tokens} tokens, seed {self.seed}"

    def rate(self, step: int) -> float:
        """Return the share of the full learning rate in *step*, counted from 0.

        After a warm-up it falls along half a cosine, and then once more from a lower height (arXiv 1608.03983).
        """
        first = round(self.steps * _FIRST_FALL)
        if step >= first:
            return _SECOND_HEIGHT * _fall(step - first, self.steps - first)
        return min(1.0, (step + 1) / _WARM_UP_STEPS) * _fall(step, first)


def train(course: Course, tokenizer: Tokenizer, is_stopped: Callable[[], bool]) -> tuple[TinyModel, Spent] | None:
    """Go through *course* from where its checkpoint is; None where *is_stopped*, asked after each step, ends it."""
    model = new_model(default_rng(course.seed), course.config)
    optimizer, spent = Optimizer(model.weights), Spent()
    if course.saved.exists():
        spent = checkpoint.load(course.saved, model, optimizer, course.settings)
        print(f"going on after step {optimizer.steps}", flush=True)
    recent: list[Losses] = []
    for batch in batches(tokenizer, seed=course.seed, batch_tokens=course.batch_tokens, start=optimizer.steps):
        if optimizer.steps == course.steps:
            break
        began, worked = time.perf_counter(), time.process_time()
        recent = [*recent[1 - _SAID_STEPS :], _step(course, model, optimizer, batch)]
        spent = Spent(
            spent.wall_seconds + time.perf_counter() - began,
            spent.processor_seconds + time.process_time() - worked,
            spent.tokens + int(batch.lengths.sum()),
        )
        if optimizer.steps % _SAID_STEPS == 0:
            print(progress_line(course, optimizer.steps, recent, spent), flush=True)
        stops = is_stopped() and optimizer.steps < course.steps
        if stops or optimizer.steps % _SAVED_STEPS == 0 or optimizer.steps == course.steps:
            checkpoint.save(course.saved, model, optimizer, spent, course.settings)
        if stops:
            return None
    return model, spent


def _step(course: Course, model: TinyModel, optimizer: Optimizer, batch: Batch) -> Losses:
    rate = course.rate(optimizer.steps)
    losses = model.learn_from(batch)
    if not math.isfinite(losses.loss):
        raise SystemExit(f"the loss of step {optimizer.steps} is {losses.loss}")
    optimizer.step(rate)
    balance(model, losses, _BALANCE_RATE * rate)
    return losses


def _fall(step: int, steps: int) -> float:
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))


def balance(model: TinyModel, losses: Losses, rate: float) -> None:
    """Move the routers' corrections: up where an expert got too few tokens, down where it got too many.

    DeepSeek-V3's load balancing without a loss of its own (arXiv 2412.19437, 2.1.2).
    """
    for index, load in losses.loads.items():
        model.biases[index] += rate * np.sign(load.mean() - load).astype(np.float32)


def progress_line(course: Course, steps: int, recent: list[Losses], spent: Spent) -> str:
    """Return one line about the last steps."""
    means = np.mean([losses[:4] for losses in recent], axis=0)
    busiest = max(float(load.max() * len(load)) for load in recent[-1].loads.values())
    left_minutes = spent.wall_seconds / steps * (course.steps - steps) / 60
    return (
        f"step {steps:,} of {course.steps:,}: loss {means[0]:.4f}, next token right {means[1]:.2%}; "
        f"by the prediction layer {means[2]:.4f}, {means[3]:.2%}; busiest expert {busiest:.2f} times the mean; "
        f"{spent.tokens / spent.wall_seconds:,.0f} tokens/s, {left_minutes:.0f} min left"
    )
