"""A calibration text goes through a model block by block, and what its matrices are given is written down.

Only one block's weights are in memory at a time, beside the text's hidden states: a model may be many times larger
than the memory. Statistics are one file a block, whole or absent; hidden states are kept on the disk now and then, so
that a run that was stopped goes on near where it was.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from r1mac.convert.abilities import identity
from r1mac.convert.input_statistics import (
    BLOCK_COLUMNS,
    RECORD_NAME,
    Tally,
    load_statistics,
    load_whole,
    save_statistics,
    save_whole,
    statistics_file,
)
from r1mac.convert.journal import digest_of
from r1mac.convert.recorder import Recorder
from r1mac.convert.sources import Source
from r1mac.convert.streamed_model import StreamedModel
from r1mac.durable import write_whole
from r1mac.errors import BadCheckpoint

TEXT_FOLDER = Path(__file__).parent / "calibration_text"
SEQUENCE_TOKENS = 512
# A tokenizer that cuts a language into tokens of fewer bytes has hardly met it, and neither has its model: what such
# text does in the model says nothing of the rest, and measuring with it made quantised models worse (docs/lab.md).
_KNOWN_TOKEN_BYTES = 3.0
_LANGUAGES_NAME = "languages.txt"
_STATES_NAME = "hidden-states.safetensors"
_TEXT_NAME = "text.json"
_FORMAT = 1
# Hidden states of large models take gigabytes: they are not written after every block of a quick run.
_STATES_EVERY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMeasured:
    """So many of the model's blocks have been gone through."""

    done: int
    total: int


def shipped_text() -> str:
    """Return the calibration text that r1mac has: reasoning in R1's format, code, prose, data, many languages."""
    return "".join(shipped_parts())


def shipped_parts() -> tuple[str, ...]:
    """Return the calibration text that r1mac has in parts: what every model knows, then a paragraph for a language."""
    general = [path for path in sorted(TEXT_FOLDER.glob("*.txt")) if path.name != _LANGUAGES_NAME]
    languages = (TEXT_FOLDER / _LANGUAGES_NAME).read_text(encoding="utf-8")
    texts = ["\n\n".join(path.read_text(encoding="utf-8") for path in general), *languages.split("\n\n")]
    return tuple(f"{text.rstrip()}\n\n" for text in texts)


def is_known(part: str, token_count: int) -> bool:
    """Tell whether a model whose tokenizer makes so many tokens of *part* has met the language that it is in."""
    return len(part.encode()) >= _KNOWN_TOKEN_BYTES * token_count


def cut_into_sequences(
    token_ids: Sequence[int], length: int = SEQUENCE_TOKENS, *, first_id: int | None = None
) -> list[list[int]]:
    """Return *token_ids* in pieces of *length*; what is left over at the end is dropped, but for a short text.

    Each piece begins with *first_id*, if there is one: a model that is used to one attends to it from everywhere.
    """
    first = [] if first_id is None else [first_id]
    step = length - len(first)
    if len(token_ids) < step:
        return [[*first, *token_ids]]
    return [[*first, *token_ids[start : start + step]] for start in range(0, len(token_ids) - step + 1, step)]


def calibrate(source: Source, sequences: Sequence[Sequence[int]], folder: Path) -> Iterator[BlockMeasured]:
    """Write statistics of *source*'s matrices over *sequences* into *folder*; yield after every block.

    What an earlier run for the same source and text left there is gone on with.

    Args:
        source: the model, in any precision.
        sequences: token ids, all of one length.
        folder: exists.

    Raises:
        BadCheckpoint: the source's tensors do not make the model that its config.json describes.
    """
    calibration = _Calibration(source, sequences, folder)
    yield from calibration.run()


def needed_bytes(source: Source, token_count: int) -> int:
    """Return about what :func:`calibrate` takes at its peak, beside Python and its libraries.

    That is a block, the text's hidden states before and behind it, and the products of its matrices' channels: a
    square of at most ``BLOCK_COLUMNS`` each, which is counted for every matrix although some share one.
    """
    model = StreamedModel(source)
    hidden_size = int(source.config["hidden_size"])
    products: dict[str, int] = defaultdict(int)
    for name, tensor in model.tensors.items():
        columns = tensor.shape[-1]
        if len(tensor.shape) > 1 and name.startswith("model.layers."):
            spans = -(-columns // BLOCK_COLUMNS)
            products[name.split(".")[2]] += 4 * spans * min(columns, BLOCK_COLUMNS) ** 2
    return model.block_bytes + 2 * 4 * token_count * hidden_size + 2 * max(products.values())


def is_complete(folder: Path) -> bool:
    """Tell whether *folder* holds statistics that are whole."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        return bool(record["format"] == _FORMAT and record["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def kept_sequences(folder: Path) -> list[list[int]]:
    """Return the token ids that the statistics in *folder* were measured over, all sequences of one length.

    Raises:
        BadCheckpoint: they are not there, or damaged.
    """
    path = folder / _TEXT_NAME
    try:
        sequences: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(
            f"{path} does not hold the text that was calibrated with: {error}",
            hint=f"delete {folder} and run `r1mac calibrate` again",
        ) from error
    return sequences


class _Calibration:
    def __init__(self, source: Source, sequences: Sequence[Sequence[int]], folder: Path) -> None:
        self._folder, self._sequences = folder, sequences
        self._model = StreamedModel(source)
        ids = [token_id for sequence in sequences for token_id in sequence]
        self._record: dict[str, Any] = {
            "format": _FORMAT,
            "source": source.description,
            "identity": identity(source),
            "text": digest_of(map(str, ids)),
            "tokens": len(ids),
            "sequence_tokens": len(sequences[0]),
            "complete": False,
        }

    def run(self) -> Iterator[BlockMeasured]:
        """Go through the blocks that are not done."""
        count = self._model.block_count
        if self._is_of_this_run() and is_complete(self._folder):
            yield BlockMeasured(done=count, total=count)
            return
        first, states = self._resumed()
        yield BlockMeasured(done=first, total=count)
        kept_at = time.monotonic()
        for number in range(first, count):
            states = self._through_block(number, states)
            if time.monotonic() - kept_at > _STATES_EVERY_S:
                self._keep(states, number + 1)
                kept_at = time.monotonic()
            yield BlockMeasured(done=number + 1, total=count)
        self._measure_head(states)
        write_whole(self._folder / RECORD_NAME, json.dumps(self._record | {"complete": True}, indent=1))
        (self._folder / _STATES_NAME).unlink(missing_ok=True)

    def _through_block(self, number: int, states: mx.array) -> mx.array:
        """Return the hidden states behind a block, and write down what its matrices met."""
        prefix = f"model.layers.{number}"
        recorder, results = Recorder(), []
        with self._model.block(number) as block, recorder.watching(block, prefix):
            for state in states:
                results.append(self._model.through(block, state))
                mx.eval(results[-1], *recorder.arrays)
                recorder.forget_arrays()
        save_statistics(statistics_file(self._folder, f"{prefix}."), recorder.statistics(), recorder.owners)
        states = mx.stack(results)
        mx.eval(states)
        return states

    def _measure_head(self, states: mx.array) -> None:
        name = self._model.head_path
        tally = Tally(states.shape[-1], correlates=True)
        for state in states:
            tally.add(self._model.normed(state))
            mx.eval(*tally.arrays)
        save_statistics(statistics_file(self._folder, name), {name: tally.statistics()}, {name: name})

    def _is_of_this_run(self) -> bool:
        try:
            found = json.loads((self._folder / RECORD_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found | {"complete": None} == self._record | {"complete": None}

    def _resumed(self) -> tuple[int, mx.array]:
        """Return the first block to go through and the hidden states before it."""
        path = self._folder / _STATES_NAME
        if self._is_of_this_run() and path.exists():
            try:
                tensors, metadata = load_whole(path)
                number, states = int(metadata["block"]), tensors["states"]
                for done in range(number):
                    load_statistics(statistics_file(self._folder, f"model.layers.{done}."))
            except (RuntimeError, KeyError, ValueError, BadCheckpoint):
                pass
            else:
                return number, states
        path.unlink(missing_ok=True)
        write_whole(self._folder / _TEXT_NAME, json.dumps([list(ids) for ids in self._sequences]))
        write_whole(self._folder / RECORD_NAME, json.dumps(self._record, indent=1))
        return 0, self._model.embedded(self._sequences)

    def _keep(self, states: mx.array, number: int) -> None:
        save_whole(self._folder / _STATES_NAME, {"states": states}, {"block": str(number)})
