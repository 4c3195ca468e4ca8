"""A conversion that was interrupted goes on: nothing finished is made again, and the result is the same to the byte."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from r1mac.convert.journal import RECORD_NAME, Journal
from r1mac.convert.pipeline import (
    ConversionStarted,
    StepDone,
    StepStarting,
    Target,
    TensorWritten,
    convert,
    convert_all,
)
from r1mac.convert.recipe import plain
from r1mac.convert.sources import Source, open_source
from r1mac.errors import BadCheckpoint
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, hub_weights, write_checkpoint, write_fp8_checkpoint

# Small enough for a dozen weight files.
SHARD_BYTES = 150_000
FOUR_BITS = plain(bits=4)


@pytest.fixture(name="fp8")
def _fp8(tmp_path: Path) -> Path:
    return write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3)


class Watched:
    """A source that notes which tensors are read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        self.read.add(name)
        return self._source.rows(name, start, stop)


def _convert(source: Path | Source, into: Path, *, steps: int | None = None, **options: Any) -> list[Any]:
    """Convert, up to so many steps where they are given, and return the events."""
    into.mkdir(exist_ok=True)
    events, done = [], 0
    opened = open_source(source) if isinstance(source, Path) else source
    recipe = options.pop("recipe", FOUR_BITS)
    running = convert(opened, recipe, into, max_shard_bytes=SHARD_BYTES, **options)
    for event in running:
        events.append(event)
        done += isinstance(event, StepDone)
        # A few tensors into the next step, so that there is something half made.
        if steps is not None and done >= steps and isinstance(event, TensorWritten | StepDone):
            running.close()
            break
    return events


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _identity_of(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Return inode and time of every whole weight file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("by_source_file", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_goes_on_where_it_was(steps: int, by_source_file: bool, tmp_path: Path) -> None:
    """After an interruption the same call makes the rest, and the folder is as if nothing had happened."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3, shard_count=7)
    _convert(source, tmp_path / "whole")
    _convert(source, tmp_path / "out", steps=steps, by_source_file=by_source_file)
    before = _identity_of(tmp_path / "out")

    events = _convert(source, tmp_path / "out", by_source_file=by_source_file)

    assert events[0].done_bytes > 0
    assert events[0].missing_output_bytes < events[0].output_bytes
    assert _bytes_of(tmp_path / "out") == _bytes_of(tmp_path / "whole")
    assert before.items() <= _identity_of(tmp_path / "out").items()


def test_finished_weights_are_not_read_again(fp8: Path, tmp_path: Path) -> None:
    """What lies in a whole file is neither read from the source nor written again."""
    first = Watched(open_source(fp8))
    _convert(first, tmp_path / "out", steps=4)
    record = Journal.load(tmp_path / "out")
    whole = _identity_of(tmp_path / "out")
    second = Watched(open_source(fp8))

    events = _convert(second, tmp_path / "out")

    assert len(record.shards) == len(whole) == 4
    assert events[0].whole_files == 4
    assert "model.embed_tokens.weight" in first.read
    assert "model.embed_tokens.weight" not in second.read
    assert whole.items() <= _identity_of(tmp_path / "out").items()


def test_a_source_by_its_files_names_what_it_needs(tmp_path: Path) -> None:
    """In the order of the source's files each is asked for once, and given up when nothing needs it any more."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3, shard_count=5)

    events = _convert(source, tmp_path / "out", by_source_file=True)

    here: set[str] = set()
    files = {path.name for path in source.glob("*.safetensors")}
    gone: set[str] = set()
    for event in events:
        if isinstance(event, StepStarting):
            assert not gone & set(event.files)
            here |= set(event.files)
        if isinstance(event, StepDone):
            gone |= set(event.unneeded_files)
    assert here == gone == files


def test_another_order_of_work_goes_on_too(tmp_path: Path) -> None:
    """What was begun in the order of the source's files is gone on with in the model's, to the same bytes."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3, shard_count=7)
    _convert(source, tmp_path / "whole")
    _convert(source, tmp_path / "out", steps=3, by_source_file=True)

    events = _convert(source, tmp_path / "out")

    assert events[0].done_bytes > 0
    assert _bytes_of(tmp_path / "out") == _bytes_of(tmp_path / "whole")


def _touch(source: Path) -> None:
    os.utime(source / "model.safetensors", ns=(1, 1))


def _edit_config(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))


@pytest.mark.parametrize(("change", "word"), [(_touch, "model.safetensors"), (_edit_config, "config.json")])
def test_a_changed_source_is_noticed(change: Any, word: str, fp8: Path, tmp_path: Path) -> None:
    """Where the source is not what it was, everything is made anew, and what changed is said."""
    _convert(fp8, tmp_path / "out", steps=3)
    change(fp8)

    events = _convert(fp8, tmp_path / "out")

    assert events[0].done_bytes == 0
    assert word in events[0].reasons[0]
    _convert(fp8, tmp_path / "whole")
    assert _bytes_of(tmp_path / "out") == _bytes_of(tmp_path / "whole")


def test_another_recipe_is_noticed(fp8: Path, tmp_path: Path) -> None:
    """Three bits do not go on with four: the recipe is named, and no file of the first run is left."""
    _convert(fp8, tmp_path / "out", steps=3)

    events = _convert(fp8, tmp_path / "out", recipe=plain(bits=3))

    assert "recipe" in events[0].reasons[0]
    _convert(fp8, tmp_path / "whole", recipe=plain(bits=3))
    assert _bytes_of(tmp_path / "out") == _bytes_of(tmp_path / "whole")


def test_restart_begins_anew(fp8: Path, tmp_path: Path) -> None:
    """With *restart* nothing of an earlier run is used."""
    _convert(fp8, tmp_path / "out", steps=3)
    before = _identity_of(tmp_path / "out")

    events = _convert(fp8, tmp_path / "out", restart=True)

    assert events[0].done_bytes == 0
    assert not before.items() & _identity_of(tmp_path / "out").items()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "shards": 3}'])
def test_a_damaged_journal_begins_anew(text: str, fp8: Path, tmp_path: Path) -> None:
    """A journal that cannot be read is no journal: nothing is taken from it, and that is said."""
    _convert(fp8, tmp_path / "out", steps=3)
    (tmp_path / "out" / RECORD_NAME).write_text(text)

    events = _convert(fp8, tmp_path / "out")

    assert events[0].done_bytes == 0
    assert events[0].reasons
    _convert(fp8, tmp_path / "whole")
    assert _bytes_of(tmp_path / "out") == _bytes_of(tmp_path / "whole")


def test_a_file_that_was_deleted_or_cut_is_made_again(fp8: Path, tmp_path: Path) -> None:
    """A weight file that is no longer there, or not in its size, is made again; the others stay."""
    _convert(fp8, tmp_path / "whole")
    _convert(fp8, tmp_path / "out", steps=4)
    first, second, *others = sorted(_identity_of(tmp_path / "out"))
    kept = {name: _identity_of(tmp_path / "out")[name] for name in others}
    (tmp_path / "out" / first).unlink()
    os.truncate(tmp_path / "out" / second, 100)

    _convert(fp8, tmp_path / "out")

    assert _bytes_of(tmp_path / "out") == _bytes_of(tmp_path / "whole")
    assert kept.items() <= _identity_of(tmp_path / "out").items()


def test_several_widths_from_one_read_are_those_made_alone(fp8: Path, tmp_path: Path) -> None:
    """2, 3 and 4 bits in one pass have the bytes that each has alone, and each tensor is read once."""
    widths = (2, 3, 4)
    for bits in widths:
        _convert(fp8, tmp_path / f"alone-{bits}", recipe=plain(bits=bits))
        (tmp_path / f"out-{bits}").mkdir()
    counted: list[tuple[str, int]] = []

    class Counting(Watched):
        def rows(self, name: str, start: int, stop: int) -> mx.array:
            counted.append((name, start))
            return super().rows(name, start, stop)

    targets = [Target(plain(bits=bits), tmp_path / f"out-{bits}") for bits in widths]
    list(convert_all(Counting(open_source(fp8)), targets, max_shard_bytes=SHARD_BYTES))

    for bits in widths:
        assert _bytes_of(tmp_path / f"out-{bits}") == _bytes_of(tmp_path / f"alone-{bits}")
    # kv_b_proj makes two tensors of the MLX model.
    once = [place for place in counted if "kv_b_proj" not in place[0]]
    assert len(once) == len(set(once))


def test_one_of_several_widths_goes_on_alone(fp8: Path, tmp_path: Path) -> None:
    """What an interrupted run of several widths made of one is gone on with by a run of that one."""
    _convert(fp8, tmp_path / "whole")
    for bits in (3, 4):
        (tmp_path / f"out-{bits}").mkdir()
    running = convert_all(
        open_source(fp8),
        [Target(plain(bits=bits), tmp_path / f"out-{bits}") for bits in (3, 4)],
        max_shard_bytes=SHARD_BYTES,
    )
    for event in running:
        if isinstance(event, TensorWritten) and event.done_bytes > event.total_bytes // 2:
            running.close()
    before = _identity_of(tmp_path / "out-4")

    events = _convert(fp8, tmp_path / "out-4")

    assert before
    assert events[0].done_bytes > 0
    assert _bytes_of(tmp_path / "out-4") == _bytes_of(tmp_path / "whole")
    assert before.items() <= _identity_of(tmp_path / "out-4").items()


def test_values_that_are_not_finite_stop_it_and_keep_what_is_whole(tmp_path: Path) -> None:
    """An infinity in a late layer is named; the files before it stay, and with nothing whole nothing stays."""
    weights = hub_weights(CONFIGS["llama"])
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = mx.where(mx.arange(256) == 77, float("inf"), weights[name]).astype(mx.bfloat16)
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"], weights=weights)

    with pytest.raises(BadCheckpoint, match=name):
        _convert(source, tmp_path / "out")
    with pytest.raises(BadCheckpoint, match=name):
        list(convert(open_source(source), FOUR_BITS, _made(tmp_path / "single")))

    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert RECORD_NAME in kept
    assert len(kept) > 1
    assert not any(name.endswith(".partial") for name in kept)
    assert list((tmp_path / "single").iterdir()) == []


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("block_bytes", [1, 70_000, 2**30])
def test_blocks_of_any_size_make_the_same_bytes(block_bytes: int, fp8: Path, tmp_path: Path) -> None:
    """The memory that is allowed changes nothing in the result."""
    _convert(fp8, tmp_path / "whole")

    events = _convert(fp8, tmp_path / "out", block_bytes=block_bytes)

    assert isinstance(events[0], ConversionStarted)
    assert _bytes_of(tmp_path / "out") == _bytes_of(tmp_path / "whole")
