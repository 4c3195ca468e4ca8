"""A kill at any step of writing down what is done: nothing that was given up is needed again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from r1mac.convert.pipeline import StepDone, StepStarting, Target, TensorWritten, convert_all
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from tests.checkpoints import DEEPSEEK_V3, write_checkpoint

# Small enough for several weight files.
SHARD_BYTES = 300_000
WIDTHS = (3, 4)


def _convert(source: Path, into: Path) -> Any:
    targets = [Target(plain(bits=bits), into / str(bits)) for bits in WIDTHS]
    for target in targets:
        target.folder.mkdir(parents=True, exist_ok=True)
    yield from convert_all(open_source(source), targets, max_shard_bytes=SHARD_BYTES, by_source_file=True)


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_kill_between_two_renames_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the disk as it was before and after every rename, no file is needed that had been given up.

    Nor is any piece made again but those of the step that was under way.
    """
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3, shard_count=6)
    out = tmp_path / "out"
    moments: list[tuple[Path, set[str], int]] = []
    given_up: set[str] = set()
    settled_bytes = 0
    replace = Path.replace

    def note() -> None:
        folder = tmp_path / f"moment-{len(moments)}"
        shutil.copytree(out, folder)
        moments.append((folder, set(given_up), settled_bytes))

    def watched(path: Path, target: Path) -> Path:
        note()
        result = replace(path, target)
        note()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", watched)
        done_bytes = 0
        for event in _convert(source, out):
            match event:
                case TensorWritten():
                    done_bytes = event.done_bytes
                case StepDone():
                    given_up |= set(event.unneeded_files)
                    settled_bytes = done_bytes
    whole = _bytes_of(out)

    assert len(moments) > 2 * 6
    assert given_up == {path.name for path in source.glob("*.safetensors")}
    for folder, gone, least_bytes in moments:
        events = list(_convert(source, folder))
        needed = {file for event in events if isinstance(event, StepStarting) for file in event.files}
        assert not needed & gone, folder.name
        assert events[0].done_bytes >= least_bytes, folder.name
        assert _bytes_of(folder) == whole, folder.name
