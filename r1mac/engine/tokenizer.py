"""Text to tokens and back, by the ``tokenizers`` library on tokenizer.json itself.

transformers rebuilds some R1 tokenizers with another pipeline (releases before 5.23: spaces vanish, ``Ġ`` leaks),
so it is not asked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mac.errors import BadCheckpoint
from r1mac.formats.folder import read_json

# Spaces in a row, a tab, an accent, a character outside the basic plane: what wrong pipelines lose.
_ROUND_TRIP_TEXT = "a  b\n\tc é 中文 🙂 x"


class Tokenizer:
    """One model's tokenizer. Not for two threads at once: streams share nothing, but loading is not locked."""

    def __init__(self, folder: Path, *, config_eos_ids: Sequence[int] = ()) -> None:
        self._folder = folder
        self._tokenizer = _load(folder / "tokenizer.json")
        settings_file = folder / "tokenizer_config.json"
        self.settings = read_json(settings_file) if settings_file.exists() else {}
        self.end_ids = self._end_ids(config_eos_ids)
        self._check_round_trip()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the tokens of *text*, with no special token added: a rendered prompt has its own."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of *token_ids*, special tokens included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def stream(self) -> "TextStream":
        """Return a decoder of tokens that come one by one."""
        return TextStream(self._tokenizer)

    def has_token(self, text: str) -> bool:
        """Whether *text* is one token of the vocabulary."""
        return self.token_id(text) is not None

    def token_id(self, text: str) -> int | None:
        """Return the token that *text* is, or None if it is not one."""
        token_id = self._tokenizer.token_to_id(text)
        return None if token_id is None else int(token_id)

    def as_json(self) -> str:
        """Return the text of a tokenizer.json that does what this tokenizer does."""
        return str(self._tokenizer.to_str())

    def special_token(self, name: str) -> str | None:
        """Return the text of a special token such as ``bos_token``, or None."""
        value = self.settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else None

    def _end_ids(self, config_ids: Sequence[int]) -> frozenset[int]:
        ids = set(config_ids)
        eos = self.special_token("eos_token")
        if eos is not None and (eos_id := self._tokenizer.token_to_id(eos)) is not None:
            ids.add(int(eos_id))
        return frozenset(ids)

    def _check_round_trip(self) -> None:
        result = self.decode(self.encode(_ROUND_TRIP_TEXT))
        # SentencePiece tokenizers may begin with a space of their own.
        if result.removeprefix(" ") != _ROUND_TRIP_TEXT:
            raise BadCheckpoint(
                f"the tokenizer in {self._folder} does not give back what it is given: "
                f"{_ROUND_TRIP_TEXT!r} became {result!r}",
                hint="fetch tokenizer.json again from the model's own repository",
            )


class TextStream:
    """Decodes tokens that come one by one into text that never breaks a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = self._new_stream()
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Take a token and return the text that became certain, which may be empty."""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # noqa: BLE001 - the library's own kind
            # With byte fallback, bytes that make no character change the text of the bytes before them.
            self._stream = self._new_stream()
            return self.finish()
        if text is None:
            return ""
        self._held.clear()
        return str(text)

    def finish(self) -> str:
        """Return the text of an unfinished character, as replacement characters."""
        text = self._tokenizer.decode(self._held, skip_special_tokens=False) if self._held else ""
        self._held.clear()
        return str(text)

    @staticmethod
    def _new_stream() -> Any:
        from tokenizers.decoders import DecodeStream

        return DecodeStream(skip_special_tokens=False)


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer as LibraryTokenizer

    if not path.is_file():
        raise BadCheckpoint(
            f"{path.parent} has no tokenizer.json", hint="add the tokenizer.json of the model's own repository"
        )
    try:
        tokenizer = LibraryTokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every kind of damage
        raise BadCheckpoint(f"{path} is not a tokenizer: {error}", hint="fetch or copy that file again") from error
    # A training script may have left its own lengths in the file; they would cut a prompt without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
