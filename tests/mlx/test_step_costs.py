"""Costs are measured in the middle of a reply without a trace in it, kept, and obeyed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from r1mac.engine.drafts.lookup import LookupDrafter
from r1mac.engine.drafts.speculation import Speculation
from r1mac.engine.drafts.step_costs import CostBook, Gauge, measure
from r1mac.engine.request import Sampling
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript
from tests.checkpoints import CONFIGS
from tests.drafting import GREEDY, TEXT, Counted, Prophet, make_model, plain, read


class _Machine(Counted):
    """A model on a machine where reading so many tokens at once takes so many seconds, by a clock of its own."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
        super().__init__(model)
        self.widths: list[int] = []
        self._seconds, self._now = seconds, 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self._now)

    def __call__(self, tokens: mx.array, **options: Any) -> mx.array:
        self._now += self._seconds(tokens.shape[1])
        self.widths.append(tokens.shape[1])
        return super().__call__(tokens, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return make_model(tmp_path_factory.mktemp("llama"), CONFIGS["llama"])


def _gauge(path: Path, **changes: str) -> Gauge:
    what = {"machine": "Mac", "fingerprint": "abc", "compute": "float32"} | changes
    return Gauge(CostBook(path), **what)


def _reply(model: Any, gauge: Gauge, drafter: Any, sampling: Sampling = GREEDY, limit: int = 120) -> list[int]:
    tokens = Speculation(drafter, gauge).decode(read(model), TEXT[-1], Sampler(sampling), [], limit)
    return list(tokens)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, seed=2)])
def test_measuring_leaves_no_trace(sampling: Sampling, model: nn.Module, tmp_path: Path) -> None:
    """The reply in which the machine is measured is that of plain decoding, and what was measured is on the disk."""
    expected = plain(model, sampling, 120)

    tokens = _reply(model, _gauge(tmp_path / "costs.json"), Prophet(TEXT + expected), sampling)

    assert tokens == expected
    known = _gauge(tmp_path / "costs.json").known(read(model), Sampler(sampling))
    assert known is not None
    assert known.ratio(1) == 1.0


def test_it_is_measured_once(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run on the same machine begins to draft at once; another machine, model, type or width is measured."""
    machine = _Machine(model, monkeypatch, lambda _: 0.01)
    expected = plain(model, GREEDY, 120)
    _reply(machine, _gauge(tmp_path / "costs.json"), Prophet(TEXT + expected))
    first, machine.widths = machine.widths, []

    _reply(machine, _gauge(tmp_path / "costs.json"), Prophet(TEXT + expected))

    assert first.count(1) > 16 >= machine.widths.count(1)
    transcript = read(model)
    assert _gauge(tmp_path / "costs.json").known(transcript, Sampler(GREEDY))
    for changes in ({"machine": "PC"}, {"fingerprint": "b"}, {"compute": "bfloat16"}):
        assert _gauge(tmp_path / "costs.json", **changes).known(transcript, Sampler(GREEDY)) is None
    narrow = Transcript(model, prefill_step_tokens=64, kv_bits=8)
    assert _gauge(tmp_path / "costs.json").known(narrow, Sampler(GREEDY)) is None
    assert _gauge(tmp_path / "costs.json").known(transcript, Sampler(Sampling(temperature=1.0))) is None


def test_a_machine_on_which_verifying_costs_too_much_drafts_nothing(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several tokens cost as much as one by one, this is measured, and then every step reads one token."""
    machine = _Machine(model, monkeypatch, lambda tokens: 0.02 * tokens)
    expected = plain(model, GREEDY, 80)

    tokens = _reply(machine, _gauge(tmp_path / "costs.json"), Prophet(TEXT + expected), limit=80)

    assert tokens == expected
    decoded = machine.widths[2:]
    assert set(decoded[40:]) == {1}
    # Measuring stopped early: in all it read what twenty single steps read.
    assert sum(decoded) <= 80 + 20


def test_a_machine_on_which_verifying_is_cheap_drafts(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several tokens cost as much as one, the known text takes a fraction of the steps."""
    machine = _Machine(model, monkeypatch, lambda _: 0.02)
    expected = plain(model, GREEDY, 120)

    tokens = _reply(machine, _gauge(tmp_path / "costs.json"), Prophet(TEXT + expected))

    assert tokens == expected
    assert len(machine.widths) < 60
    assert max(machine.widths[2:]) > 8


def test_what_is_built_once_is_no_cost(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes long to build the first time makes no width look dear, and hides no wider one."""
    built: set[int] = set()

    def seconds(tokens: int) -> float:
        first = tokens not in built
        built.add(tokens)
        return 0.01 + 0.001 * (tokens - 1) + 0.5 * (first and tokens > 1)

    machine = _Machine(model, monkeypatch, seconds)
    transcript = read(machine)

    costs = measure(transcript, TEXT, lambda logits: mx.argmax(logits, axis=-1))

    assert {count: round(costs.ratio(count), 3) for count in costs.seconds} == {1: 1.0, 2: 1.1, 4: 1.3, 8: 1.7}


def test_free_text_is_not_held_up_by_measuring(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is nothing to draft, nothing is measured."""
    machine = _Machine(model, monkeypatch, lambda _: 0.01)
    sampling = Sampling(temperature=1.5, top_p=1.0, seed=1)
    text = TEXT[:70]

    tokens = Speculation(LookupDrafter(), _gauge(tmp_path / "costs.json")).decode(
        read(machine, text), text[-1], Sampler(sampling), [], 150
    )

    assert list(tokens) == plain(model, sampling, 150, text)
    assert not (tmp_path / "costs.json").exists()
    assert set(machine.widths[2:]) == {1}


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("kv_bits", [16, 4])
def test_the_cache_is_as_before(kind: str, kv_bits: int, tmp_path: Path) -> None:
    """After measuring the next token's logits are bit for bit those that they would have been."""
    model = make_model(tmp_path, CONFIGS[kind])
    transcript = read(model, kv_bits=kv_bits)
    expected = transcript.feed(mx.array(TEXT[-1:]))
    mx.eval(expected)
    transcript.keep(len(TEXT) - 1)

    costs = measure(transcript, TEXT, lambda logits: mx.argmax(logits, axis=-1))

    assert len(transcript) == len(TEXT) - 1
    assert mx.array_equal(transcript.feed(mx.array(TEXT[-1:])), expected)
    assert costs.seconds[1] > 0
