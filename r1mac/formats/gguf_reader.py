"""ggml-org's reader of GGUF files, made to stop at the file's end and to read a vocabulary in no time.

As it is, it takes what lies behind the end for empty, and an array of 2**60 numbers for that many turns of a loop; and
it makes several memory maps of each of a tokenizer's 250,000 words and merges, which takes seconds.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFEndian, GGUFReader, GGUFValueType


def open_reader(path: Path) -> GGUFReader:
    """Return the reader of a file. What it raises on a damaged one is whatever numpy says first."""
    # An offset that wraps around would lead back into the header.
    with np.errstate(over="raise"):
        return _BoundedReader(str(path))


class _BoundedReader(GGUFReader):  # type: ignore[misc]
    @property
    def data(self) -> Any:
        """The file's bytes, mapped."""
        return self._data

    @data.setter
    def data(self, mapped: Any) -> None:
        self._data: Any = np.asarray(mapped)  # a part of it is no memory map of its own

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        values = super()._get(offset, dtype, count, override_order)
        if values.size < count:
            raise ValueError(f"{count} values at byte {offset} are not in the file")
        return values

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        """Return size, parts, which of these are the contents, and types, as the library does; lists all at once."""
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, count, begin = GGUFValueType(head[0][0]), int(head[1][0]), orig_offs + 12
        if kind == GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
        if kind == GGUFValueType.STRING:
            items = self._texts(begin, count)
            size_bytes = 12 + sum(8 + text.nbytes for text in items)
        else:
            items = [self._get(begin, self.gguf_scalar_to_np[kind], count)]
            size_bytes = 12 + items[0].nbytes
        parts = [*head, *items]
        return size_bytes, parts, list(range(len(head), len(parts))), [GGUFValueType.ARRAY, kind]

    def _texts(self, offset: int, count: int) -> list[Any]:
        """Return the bytes of *count* texts, each of which stands behind its length."""
        order: Any = "big" if self.endianess == GGUFEndian.BIG else "little"
        content, texts = memoryview(self._data), []
        for _ in range(count):
            begin = offset + 8
            offset = begin + int.from_bytes(content[offset:begin], order)
            if offset > len(content):
                raise ValueError(f"the text at byte {begin} is not in the file")
            texts.append(self._data[begin:offset])
        return texts
