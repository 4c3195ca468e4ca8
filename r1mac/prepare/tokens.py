"""Texts as a model's own tokenizer cuts them, read from the files that go with its weights."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from r1mac.errors import BadCheckpoint

if TYPE_CHECKING:
    from r1mac.convert.sources import Source


class Encoded(NamedTuple):
    """Texts as tokens.

    Attributes:
        texts: token ids of each.
        first_id: the token that every text of this model begins with, if it is used to one; not part of *texts*.
    """

    texts: tuple[list[int], ...]
    first_id: int | None


def encode_texts(source: "Source", texts: Sequence[str]) -> Encoded:
    """Return *texts* as tokens of *source*'s model.

    The tokenizer is read from a copy of the files that go with the weights: a GGUF file has it inside.

    Raises:
        BadCheckpoint: there is no tokenizer, or it is not the model's.
    """
    from r1mac.engine.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        source.write_companions(Path(name))
        if not (Path(name) / "tokenizer.json").is_file():
            raise BadCheckpoint(
                f"{source.description} has no tokenizer.json, without which no text can be read",
                hint="copy it from the model's own repository",
            )
        tokenizer = Tokenizer(Path(name))
    found = tuple(map(tokenizer.encode, texts))
    most = max((token_id for ids in found for token_id in ids), default=0)
    if most >= (count := source.config.get("vocab_size", most + 1)):
        raise BadCheckpoint(
            f"the tokenizer of {source.description} gives token {most}, and the model has {count}",
            hint="use the tokenizer of the model's own repository",
        )
    first = tokenizer.special_token("bos_token") if tokenizer.settings.get("add_bos_token") else None
    return Encoded(found, tokenizer.token_id(first) if first else None)


def read_text(path: Path, what: str) -> str:
    """Return the text of a file; *what* it is, for a sentence.

    Raises:
        BadCheckpoint: it cannot be read, or is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadCheckpoint(f"cannot read {what} {path}: {reason}", hint="check the path") from error
