"""A calibration text goes through a model block by block and a gradient back, and what matrices meet is written down.

Only one block's weights are in memory at a time, beside the text's hidden states, or their gradient: a model may be
many times larger than the memory. The states before each block are kept on the disk until the gradient has come back
there. Statistics are one file a block, whole or absent; the gradient is kept now and then, so that a run that was
stopped goes on near where it was.
"""

import json
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from r1mac.convert.abilities import identity
from r1mac.convert.answer_gradient import answer_gradient
from r1mac.convert.input_statistics import (
    RECORD_NAME,
    Tally,
    correlated_columns,
    load_whole,
    save_statistics,
    save_whole,
    statistics_file,
)
from r1mac.convert.journal import digest_of
from r1mac.convert.recorder import Recorder, has_slices_apart
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
_STATES_NAME = "hidden-states-{}.safetensors"
_GRADIENT_NAME = "gradient.safetensors"
_TEXT_NAME = "text.json"
_FORMAT = 2
# Gradients of large models take gigabytes: they are not written after every block of a quick run.
_GRADIENT_EVERY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMeasured:
    """So many blocks have been gone through; each is gone through twice, forth and back."""

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


class Needs(NamedTuple):
    """What :func:`calibrate` takes at its peak, beside Python and its libraries.

    Attributes:
        memory_bytes: about a block, the products of its matrices' channels, the text's hidden states or their
            gradient, and what a sequence leaves in a block until the gradient has come back through it.
        disk_bytes: at the most: the states before each block, their gradient, and statistics.
    """

    memory_bytes: int
    disk_bytes: int


def needs(source: Source, token_count: int) -> Needs:
    """Return what it takes to calibrate *source* with so many tokens."""
    model = StreamedModel(source)
    state_values = token_count * int(source.config["hidden_size"])
    product_bytes = _product_bytes(model).values()
    return Needs(
        model.block_bytes + 2 * 4 * state_values + 2 * max(product_bytes) + _backward_bytes(model, source),
        (2 * (model.block_count + 1) + 4) * state_values + sum(product_bytes) // 2,
    )


def _product_bytes(model: StreamedModel) -> dict[str, int]:
    """Return what the products of channels take in float32, of each block: squares along a diagonal."""
    found: dict[str, int] = defaultdict(int)
    for name, tensor in model.tensors.items():
        if len(tensor.shape) > 1 and name.startswith("model.layers."):
            columns = tensor.shape[-1]
            slices = prod(tensor.shape[:-2]) if has_slices_apart(name.removesuffix(".weight")) else 1
            found[name.split(".")[2]] += 4 * slices * columns * correlated_columns(columns, slices)
    return found


def _backward_bytes(model: StreamedModel, source: Source) -> int:
    """Return about what one sequence takes in a block with all that its gradient needs, in float32.

    Each matrix's input and product, and twice the scores of attention; a token goes through few of many experts.
    """
    chosen = int(source.config.get("num_experts_per_tok") or 1)
    values: dict[str, int] = defaultdict(int)
    for name, tensor in model.tensors.items():
        if len(tensor.shape) > 1 and name.startswith("model.layers."):
            slices = chosen if ".switch_mlp." in name else prod(tensor.shape[:-2])
            values[name.split(".")[2]] += 2 * slices * sum(tensor.shape[-2:]) * SEQUENCE_TOKENS
    scores = 2 * int(source.config["num_attention_heads"]) * SEQUENCE_TOKENS**2
    return 4 * (max(values.values()) + scores)


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
    """The text goes through all blocks; then a gradient of the answers goes back through them, and is looked at."""

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
        if not self._is_of_this_run():
            self._begin()
        elif is_complete(self._folder):
            yield BlockMeasured(done=2 * count, total=2 * count)
            return
        kept = self._kept_gradient()
        if kept is None:
            kept = count, self._through_head((yield from self._forth()))
        yield from self._back(*kept)
        write_whole(self._folder / RECORD_NAME, json.dumps(self._record | {"complete": True}, indent=1))
        self._forget(_STATES_NAME.format("*"), _GRADIENT_NAME)

    def _forth(self) -> Generator[BlockMeasured, None, list[mx.array]]:
        """Return the hidden states behind the last block; those before each are kept on the disk."""
        count = self._model.block_count
        first, states = self._kept_states()
        for number in range(first, count):
            yield BlockMeasured(done=number, total=2 * count)
            with self._model.block(number) as block:
                for place, state in enumerate(states):
                    states[place] = _kept_state(self._model.through(block, _wide(state)))
                    mx.eval(states[place])
            self._keep_states(number + 1, states)
        return states

    def _through_head(self, states: Sequence[mx.array]) -> list[mx.array]:
        """Write down what the head meets, and return the gradient of the answers behind the last block."""
        name, tally, gradient = self._model.head_path, Tally(states[0].shape[-1]), []
        given = [self._model.normed(_wide(state)) for state in states]
        mx.eval(given)
        for place, found in enumerate(answer_gradient(self._model, given)):
            tally.add(given[place], found.at_logits)
            gradient += mx.vjp(self._model.normed, [_wide(states[place])], [found.at_states])[1]
            mx.eval(gradient[-1], *tally.arrays)
        save_statistics(statistics_file(self._folder, name), {name: tally.statistics()})
        return gradient

    def _back(self, first: int, gradient: list[mx.array]) -> Iterator[BlockMeasured]:
        """Carry *gradient*, which is behind the block before *first*, back to the embedding."""
        count, kept_at = self._model.block_count, time.monotonic()
        yield BlockMeasured(done=2 * count - first, total=2 * count)
        for number in reversed(range(first)):
            self._back_through_block(number, gradient)
            if number and time.monotonic() - kept_at > _GRADIENT_EVERY_S:
                save_whole(self._folder / _GRADIENT_NAME, _numbered(gradient), {"block": str(number)})
                self._forget(*(_STATES_NAME.format(f"{done:05}") for done in range(number, count + 1)))
                kept_at = time.monotonic()
            yield BlockMeasured(done=2 * count - number, total=2 * count)

    def _back_through_block(self, number: int, gradient: list[mx.array]) -> None:
        """Take *gradient* from behind a block to before it, and write down what its matrices met."""
        prefix, recorder = f"model.layers.{number}", Recorder()
        try:
            states = _sequences_of(load_whole(self._states_file(number))[0])
        except (RuntimeError, KeyError) as error:
            raise BadCheckpoint(
                f"{self._states_file(number)} does not hold what was kept in it: {error}",
                hint=f"delete {self._folder}, and give the same command again",
            ) from error
        with self._model.block(number) as block, recorder.watching(block, prefix):
            for place, state in enumerate(states):
                through = partial(self._model.through, block)
                gradient[place] = mx.vjp(through, [_wide(state)], [gradient[place]])[1][0]
                mx.eval(gradient[place], *recorder.arrays)
        save_statistics(statistics_file(self._folder, f"{prefix}."), recorder.statistics())

    def _is_of_this_run(self) -> bool:
        try:
            found = json.loads((self._folder / RECORD_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found | {"complete": None} == self._record | {"complete": None}

    def _begin(self) -> None:
        self._forget(_STATES_NAME.format("*"), _GRADIENT_NAME)
        write_whole(self._folder / _TEXT_NAME, json.dumps([list(ids) for ids in self._sequences]))
        write_whole(self._folder / RECORD_NAME, json.dumps(self._record, indent=1))

    def _states_file(self, number: int) -> Path:
        return self._folder / _STATES_NAME.format(f"{number:05}")

    def _keep_states(self, number: int, states: Sequence[mx.array]) -> None:
        save_whole(self._states_file(number), _numbered(states), {})

    def _kept_states(self) -> tuple[int, list[mx.array]]:
        """Return the first block to go through and the hidden states before it."""
        for number in reversed(range(1, self._model.block_count + 1)):
            try:
                return number, _sequences_of(load_whole(self._states_file(number))[0])
            except (RuntimeError, KeyError):
                continue
        states = [_kept_state(state) for state in self._model.embedded(self._sequences)]
        self._keep_states(0, states)
        return 0, states

    def _kept_gradient(self) -> tuple[int, list[mx.array]] | None:
        """Return the block before which a gradient was kept, and that, if all behind it is measured."""
        try:
            tensors, metadata = load_whole(self._folder / _GRADIENT_NAME)
            return int(metadata["block"]), _sequences_of(tensors)
        except (RuntimeError, KeyError, ValueError):
            return None

    def _forget(self, *names: str) -> None:
        for name in names:
            for path in self._folder.glob(name):
                path.unlink(missing_ok=True)


def _kept_state(state: mx.array) -> mx.array:
    """Return hidden states as they are kept: all models have the range of bfloat16, and many its precision."""
    return state.astype(mx.bfloat16)


def _wide(state: mx.array) -> mx.array:
    return state.astype(mx.float32)


def _numbered(sequences: Sequence[mx.array]) -> dict[str, mx.array]:
    return {str(number): values for number, values in enumerate(sequences)}


def _sequences_of(tensors: Mapping[str, mx.array]) -> list[mx.array]:
    """Return what :func:`_numbered` was given; nothing is read before it is used."""
    return [tensors[str(number)] for number in range(len(tensors))]
