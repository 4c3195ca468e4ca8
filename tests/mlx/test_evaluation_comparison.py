"""Models side by side give what the whole models give, and each is read once."""

from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from r1mac import mlx_lm_api
from r1mac.catalog.arch import parse_arch
from r1mac.convert.blocks import DEFAULT_BLOCK_BYTES
from r1mac.convert.comparison import Reading, compare_passages
from r1mac.convert.evaluation import EvaluationText, cut_sequences
from r1mac.convert.passage import Passage, bytes_per_token, models_at_once
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.convert.stored import RawTensor
from r1mac.engine.divergence import compare
from r1mac.engine.layers.router import install_router
from r1mac.errors import BadCheckpoint
from tests.checkpoints import CONFIGS, LLAMA, hub_weights, write_checkpoint

SEQUENCES = np.random.default_rng(1).integers(0, 320, (3, 30)).tolist()


def _converted(source: Path, into: Path, bits: int) -> Path:
    into.mkdir()
    for _ in convert(open_source(source), plain(bits=bits), into):
        pass
    return into


def _compared(*folders: Path, block_bytes: int = DEFAULT_BLOCK_BYTES, room_bytes: int = 2**30) -> tuple[Reading, ...]:
    passages = [Passage(open_source(folder), block_bytes=block_bytes) for folder in folders]
    *_, last = compare_passages(passages, SEQUENCES, with_reference=True, room_bytes=room_bytes)
    assert last.done == last.total
    return last.readings


def _model(folder: Path) -> object:
    model = mlx_lm_api.load_lazily(folder, {})
    model.set_dtype(mx.float32)
    install_router(model)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "deepseek_v3"])
def test_figures_are_those_of_the_whole_models(kind: str, tmp_path: Path) -> None:
    """Also where a few words of the vocabulary are looked at at a time."""
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])
    made = [_converted(source, tmp_path / f"{bits}", bits) for bits in (4, 3)]
    columns = max(CONFIGS[kind]["hidden_size"], 90)

    reference, *readings = _compared(source, *made, block_bytes=4 * columns * 7)

    for reading, folder in zip(readings, made, strict=True):
        *_, wanted = compare(_model(folder), _model(source), SEQUENCES)
        assert reading.kl_nats == pytest.approx(wanted.kl_nats, rel=1e-4)
        assert reading.same_top == pytest.approx(wanted.same_top)
        assert reading.perplexity == pytest.approx(wanted.perplexity, rel=1e-4)
        assert reference.perplexity == pytest.approx(wanted.reference_perplexity, rel=1e-4)
        assert reading.kl_nats < reading.kl_p99_nats < 5 * reading.kl_nats
    assert reference.kl_nats is None


def test_a_model_is_as_far_from_itself_as_nothing(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)

    _, again = _compared(source, source)

    assert again.kl_nats == pytest.approx(0, abs=1e-6)
    assert again.same_top == 1


@pytest.mark.parametrize("kind", ["qwen2", "deepseek_v3"])
def test_figures_are_the_same_however_many_models_go_side_by_side(kind: str, tmp_path: Path) -> None:
    """To the last bit, and each time."""
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])
    made = [_converted(source, tmp_path / f"{bits}", bits) for bits in (4, 3, 2)]

    alone, *together = (_compared(source, *made, room_bytes=room_bytes) for room_bytes in (0, 2**30, 2**30))

    assert all(readings == alone for readings in together)


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_models_go_side_by_side_where_there_is_room(kind: str) -> None:
    arch = parse_arch(CONFIGS[kind])
    least = bytes_per_token(arch, 4) * 100

    counts = [models_at_once(arch, 100, 4, room_bytes) for room_bytes in (0, least, 2 * least, 2**40)]

    assert counts[:2] == [1, 1]
    assert counts == sorted(counts)
    assert counts[2] > 1
    assert counts[3] == 4


def test_the_original_is_read_once_for_all_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    made = [_converted(source, tmp_path / f"{bits}", bits) for bits in (4, 3, 2)]
    read: Counter[tuple[Path, str, int]] = Counter()
    numpy_rows = RawTensor.numpy_rows

    def counted(self: RawTensor, start: int, stop: int) -> object:
        read[self.path.parent, self.name, start] += 1
        return numpy_rows(self, start, stop)

    monkeypatch.setattr(RawTensor, "numpy_rows", counted)

    _compared(source, *made)

    for folder in (source, *made):
        assert sum(path == folder and "layers" in name for path, name, _ in read) >= 14
    assert set(read.values()) == {1}


def test_other_vocabularies_cannot_be_compared(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one", LLAMA)
    two = write_checkpoint(tmp_path / "two", {**LLAMA, "vocab_size": 384})

    with pytest.raises(BadCheckpoint, match=r"384 tokens and .* 320"):
        _compared(one, two)


def test_a_model_that_computes_no_numbers_is_named(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA)
    weights = hub_weights(LLAMA)
    weights["model.norm.weight"] = weights["model.norm.weight"] * mx.inf
    broken = write_checkpoint(tmp_path / "broken", LLAMA, weights=weights)

    with pytest.raises(BadCheckpoint, match="broken does not compute"):
        _compared(source, broken)


def test_a_short_measurement_has_something_of_every_part() -> None:
    parts = [[10 + i for i in range(9)], [30 + i for i in range(4)], [50 + i for i in range(7)]]

    assert cut_sequences(parts, tokens=12, length=4) == [[10, 11, 12, 13], [30, 31, 32, 33], [50, 51, 52, 53]]
    assert cut_sequences(parts, tokens=16, length=4)[3] == [14, 15, 16, 17]
    assert cut_sequences(parts, tokens=8, length=4, first_id=1) == [[1, 10, 11, 12], [1, 30, 31, 32]]
    assert cut_sequences(parts, tokens=100, length=64) == [parts[0]]


def test_the_evaluation_text_is_not_what_is_learnt_from() -> None:
    from r1mac.convert.calibration import shipped_text

    learnt = {line for line in shipped_text().splitlines() if len(line) > 20}
    parts = EvaluationText.shipped().parts

    assert len(parts) == 4
    assert sum(len(part.encode()) for part in parts) > 15_000
    assert not {line for part in parts for line in part.splitlines()} & learnt
