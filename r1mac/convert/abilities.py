"""What a source may know beside what the protocol asks of it, and what is assumed where it does not."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from r1mac.convert.sources import Source


# The aspect of a source's identity that says that its layers behind the last one are not converted.
NO_PREDICTION = "the prediction layer (MTP)"


@runtime_checkable
class Identified(Protocol):
    """A source that can be told from another without reading its weights."""

    def identity(self) -> Mapping[str, str]:
        """Return names of files or aspects, each with a text that changes when it does."""
        ...


@runtime_checkable
class Typed(Protocol):
    """A source that knows its types without reading."""

    def value_type(self, name: str) -> str:
        """Return the MLX type that ``rows`` gives for a tensor, such as ``bfloat16``."""
        ...


def identity(source: "Source") -> dict[str, str]:
    """Return what tells *source* from another; at least its config and every tensor's name, shape and size."""
    shapes = source.shapes()
    tensors = [f"{name} {shapes[name]} {source.size_bytes(name)}" for name in sorted(shapes)]
    known = source.identity() if isinstance(source, Identified) else {}
    config = json.dumps(source.config, sort_keys=True, default=str)
    return {"config.json": _digest(config), "the list of tensors": _digest("\n".join(tensors)), **known}


def value_type(source: "Source", name: str) -> str:
    """Return the MLX type of a tensor's values; a source that does not know it is asked for its first rows."""
    if isinstance(source, Typed):
        return source.value_type(name)
    return str(source.rows(name, 0, source.row_step(name)).dtype).rpartition(".")[2]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
