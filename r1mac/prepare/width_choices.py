"""Choices of a width for each matrix of a model that a budget allows. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from r1mac.errors import BadRecipe
from r1mac.plan.memory import Quantization, tensor_bytes
from r1mac.units import format_size

if TYPE_CHECKING:
    from r1mac.convert.layout import ModelLayout, OutputTensor
    from r1mac.convert.sensitivity import Sensitivity

# What a matrix may become. Small groups pay at 2 to 4 bits; wide codes have little use for them.
WIDTHS = tuple(
    Quantization(bits=bits, group_size=group_size) for bits in (2, 3, 4) for group_size in (128, 64, 32)
) + tuple(Quantization(bits=bits, group_size=64) for bits in (5, 6, 8))
OWN, CAUTIOUS, UNIFORM = "widths of their own", "cautious widths", "one width"
# Where widths differ, the offsets in a file's header have a digit more here and there; so much for each matrix.
_HEADER_BYTES = 4
# A matrix of which nothing could be measured.
_UNMEASURED = Quantization(bits=4, group_size=64)

Widths = Mapping[str, Quantization]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a budget leaves for the matrices of a model.

    Attributes:
        matrices: those that may be quantised, by their path.
        wide_bytes: of everything else.
        matrix_bytes: what the matrices may take.
    """

    matrices: Mapping[str, "OutputTensor"]
    wide_bytes: int
    matrix_bytes: int

    @property
    def weight_count(self) -> int:
        """Values of the matrices."""
        return sum(prod(tensor.shape) for tensor in self.matrices.values())

    @property
    def bits_per_weight(self) -> float:
        """What a weight may take with its share of scale and bias."""
        return 8 * self.matrix_bytes / self.weight_count

    def bytes_of(self, widths: Widths) -> int:
        """Return what the matrices take at *widths*; one that has none stays wide."""
        return sum(
            tensor_bytes(tensor.shape, widths.get(path), value_bytes=tensor.dtype.size)
            for path, tensor in self.matrices.items()
        )

    def uniform(self, width: Quantization) -> Widths:
        """Return *width* for every matrix whose rows its groups divide, as ``--bits`` gives it."""
        return {path: width for path, tensor in self.matrices.items() if tensor.shape[-1] % width.group_size == 0}


def room_for(
    layout: "ModelLayout",
    *,
    bits_per_weight: float | None = None,
    size_bytes: int | None = None,
    uniform: Quantization | None = None,
) -> Room:
    """Return what a budget leaves for the matrices of the model that *layout* shows at 16 bits.

    Args:
        layout: of all its tensors.
        bits_per_weight: mean over the weights of matrices; what stays wide comes on top.
        size_bytes: of everything.
        uniform: the matrices may take what this width makes of them; one of the three is said.
    """
    matrices, wide_bytes = {}, 0
    for tensor in layout.tensors:
        path = tensor.name.removesuffix(".weight")
        if tensor.is_prediction:
            continue
        if path in layout.widths and tensor.shape[-1] % _UNMEASURED.group_size == 0:
            matrices[path] = tensor
        else:
            wide_bytes += sum(stored.size_bytes for stored in tensor.stored())
    if size_bytes is not None:
        return Room(matrices=matrices, wide_bytes=wide_bytes, matrix_bytes=size_bytes - wide_bytes)
    if uniform is not None:
        room = Room(matrices=matrices, wide_bytes=wide_bytes, matrix_bytes=0)
        return replace(room, matrix_bytes=room.bytes_of(room.uniform(uniform)))
    assert bits_per_weight is not None
    weight_count = sum(prod(tensor.shape) for tensor in matrices.values())
    return Room(matrices=matrices, wide_bytes=wide_bytes, matrix_bytes=int(bits_per_weight * weight_count / 8))


def candidates(room: Room, known: "Sensitivity", *, title: str) -> dict[str, Widths]:
    """Return choices within the budget, no two alike: by what is known, by half of it, and the best width for all.

    Args:
        room: what there is.
        known: what quantising each matrix costs.
        title: the model's name for a person.

    Raises:
        BadRecipe: no widths are small enough.
    """
    from r1mac.convert.sensitivity import doubted, total_cost

    sizes = {path: prod(tensor.shape) for path, tensor in room.matrices.items()}
    found = {OWN: _allocated(room, known, title=title), CAUTIOUS: _allocated(room, doubted(known, sizes), title=title)}
    fitting = [widths for widths in map(room.uniform, WIDTHS) if room.bytes_of(widths) <= room.matrix_bytes]
    if fitting:
        found[UNIFORM] = min(fitting, key=lambda widths: total_cost(known, widths))
    different: dict[str, Widths] = {}
    for name in (UNIFORM, OWN, CAUTIOUS):
        if name in found and found[name] not in different.values():
            different[name] = found[name]
    return different


def _allocated(room: Room, known: "Sensitivity", *, title: str) -> Widths:
    from r1mac.convert.allocation import allocate, choices_of

    options = {}
    for path, tensor in room.matrices.items():
        costs = {_UNMEASURED: 0.0}
        if path in known.groups:
            costs = {width: known.cost(path, width) for width in known.loss[path]}
        options[path] = choices_of(tensor.shape, costs, value_bytes=tensor.dtype.size)
    widths = allocate(options, room.matrix_bytes - _HEADER_BYTES * len(options))
    if widths is None:
        least_bytes = sum(choices[0].size_bytes for choices in options.values())
        raise BadRecipe(
            f"the weights of {title} take at least {format_size(room.wide_bytes + least_bytes)}, and the budget is "
            f"{format_size(room.wide_bytes + room.matrix_bytes)}",
            hint=f"allow {8 * least_bytes / room.weight_count + 0.005:.2f} bits per weight or more, "
            "or choose a smaller model",
        )
    return widths
