"""One expert's share of an adapter for a stack of experts, as mlx-lm's ``LoRASwitchLinear`` keeps it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from r1mac.convert.stored import RawTensor
from r1mac.errors import BadCheckpoint

_STACK = re.compile(r"^(?P<before>.+\.mlp)\.switch_mlp\.(?P<projection>gate_proj|up_proj|down_proj)$")
_STACKED_AXES = 3


class ExpertHalves(NamedTuple):
    """The halves of one expert's change: *a* ``[rank, columns]``, *b* ``[rows, rank]``, and the Hub's name for it."""

    module: str
    a: RawTensor
    b: RawTensor


def is_stacked(module: str, a: RawTensor | None, b: RawTensor | None) -> bool:
    """Tell whether the halves of the change of *module* are those of a stack of experts."""
    return bool(_STACK.match(module)) and any(half is not None and len(half.shape) == _STACKED_AXES for half in (a, b))


def expert_halves(module: str, a: RawTensor, b: RawTensor) -> Iterator[ExpertHalves]:
    """Yield each expert's halves of *a* ``[experts, rank, columns]`` and *b* ``[experts, rows, rank]``; none is read.

    Raises:
        BadCheckpoint: they are not of one number of experts and one rank.
    """
    match = _STACK.match(module)
    assert match is not None
    fits = len(a.shape) == len(b.shape) == _STACKED_AXES and (a.shape[0], a.shape[1]) == (b.shape[0], b.shape[2])
    if not fits:
        raise BadCheckpoint(
            f"{a.name} is {list(a.shape)} and {b.name} {list(b.shape)}, which are not [experts, rank, columns] and "
            "[experts, rows, rank]",
            hint="fuse it with mlx_lm.fuse, and convert the result",
        )
    for number in range(a.shape[0]):
        name = f"{match['before']}.experts.{number}.{match['projection']}"
        yield ExpertHalves(name, _share(a, number), _share(b, number))


def _share(stack: RawTensor, number: int) -> RawTensor:
    entry = stack.entry
    size_bytes = entry.size_bytes // entry.shape[0]
    start = entry.start + number * size_bytes
    return RawTensor(stack.path, replace(entry, shape=entry.shape[1:], start=start, stop=start + size_bytes))
