"""The tensors that a conversion will write, known before any weight is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from r1mac.catalog.arch import SUPPORTED_MODEL_TYPES, parse_arch
from r1mac.convert.names import Sourcing, sourcing_of, unused_names
from r1mac.convert.recipe import Recipe
from r1mac.convert.sources import Source
from r1mac.errors import BadCheckpoint, BadRecipe
from r1mac.formats.safetensors import TensorLayout
from r1mac.plan.memory import Quantization

_STORED_TYPES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """One tensor of the MLX model: its values, and whether they are quantised on the way."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    quantization: Quantization | None
    sourcing: Sourcing

    def stored(self) -> Iterator[TensorLayout]:
        """Yield the tensors as they are written: one, or codes, scales and biases."""
        stored_type = _STORED_TYPES[self.dtype]
        if self.quantization is None:
            yield TensorLayout(self.name, stored_type, self.shape)
            return
        module, (*rows, columns) = self.name.removesuffix(".weight"), self.shape
        words = columns * self.quantization.bits // 32
        groups = columns // self.quantization.group_size
        yield TensorLayout(f"{module}.weight", "U32", (*rows, words))
        yield TensorLayout(f"{module}.scales", stored_type, (*rows, groups))
        yield TensorLayout(f"{module}.biases", stored_type, (*rows, groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """All tensors of a converted model, in the model's own order.

    Attributes:
        unquantized_names: matrices that stay wide because the group size does not divide their rows.
    """

    tensors: tuple[OutputTensor, ...]
    unquantized_names: tuple[str, ...]

    @property
    def parameter_count(self) -> int:
        """Values before quantisation."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors as they are written."""
        return sum(tensor.size_bytes for tensor in self.stored())

    def stored(self) -> list[TensorLayout]:
        """Return every tensor as it is written."""
        return [stored for tensor in self.tensors for stored in tensor.stored()]


def plan_layout(source: Source, recipe: Recipe) -> ModelLayout:
    """Match a source's tensors with those of the MLX model and decide what becomes of each.

    Raises:
        BadCheckpoint: the architecture is unknown, or a tensor is missing, too many or of the wrong shape.
        BadRecipe: the group size divides no matrix of the model.
    """
    model = _skeleton(source)
    parameters = dict(tree_flatten(model.parameters()))
    keeps_type = getattr(model, "cast_predicate", lambda _name: True)
    modules = {name for name, module in model.named_modules() if hasattr(module, "to_quantized")}
    available = source.shapes()
    expert_count = int(source.config.get("n_routed_experts") or 0)
    sourcings = {name: sourcing_of(name, available, expert_count=expert_count) for name in parameters}
    _check_names(source, sourcings, available)
    tensors, unquantized = [], []
    for name, parameter in parameters.items():
        sourcing = sourcings[name]
        is_matrix = name.removesuffix(".weight") in modules and name.endswith(".weight")
        divides = parameter.shape[-1] % recipe.default.group_size == 0
        if is_matrix and recipe.quantizes and not divides:
            unquantized.append(name)
        quantize = is_matrix and recipe.quantizes and divides
        _check_shape(name, tuple(parameter.shape), sourcing, available)
        tensors.append(
            OutputTensor(
                name=name,
                shape=tuple(parameter.shape),
                dtype=_output_type(source, recipe, sourcing, cast=bool(keeps_type(name))),
                quantization=recipe.default if quantize else None,
                sourcing=sourcing,
            )
        )
    if recipe.quantizes and all(tensor.quantization is None for tensor in tensors):
        raise BadRecipe(
            f"no matrix of this model has rows that {recipe.default.group_size} divides",
            hint="use a smaller --group-size (64 or 32)",
        )
    return ModelLayout(tensors=tuple(tensors), unquantized_names=tuple(unquantized))


def _skeleton(source: Source) -> Any:
    from r1mac import mlx_lm_api

    model_type = source.config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise BadCheckpoint(
            f"{source.description} is a {model_type!r} model, which r1mac does not convert",
            hint=f"r1mac converts {', '.join(SUPPORTED_MODEL_TYPES)}",
        )
    try:
        parse_arch(source.config)
        return mlx_lm_api.model_skeleton(source.config)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise BadCheckpoint(
            f"the config.json of {source.description} does not describe a {model_type} model: {error}",
            hint="fetch or copy config.json again",
        ) from error


def _output_type(source: Source, recipe: Recipe, sourcing: Sourcing, *, cast: bool) -> mx.Dtype:
    """Return the type to store: the recipe's, else the source's; what must not be cast keeps its own."""
    wanted = recipe.dtype or source.default_dtype
    if cast and wanted is not None:
        return getattr(mx, wanted)  # type: ignore[no-any-return]
    own: mx.Dtype = source.rows(sourcing.names[0], 0, source.row_step(sourcing.names[0])).dtype
    return own if own in _STORED_TYPES else mx.float32


def _check_names(source: Source, sourcings: Mapping[str, Sourcing], available: Mapping[str, Any]) -> None:
    wanted = {name for sourcing in sourcings.values() for name in sourcing.names}
    unused = unused_names(
        list(available),
        layer_count=source.config["num_hidden_layers"],
        tied_embeddings="lm_head.weight" not in sourcings,
    )
    if missing := sorted(wanted - available.keys()):
        raise BadCheckpoint(
            f"{source.description} lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}",
            hint="fetch or copy the checkpoint again",
        )
    if extra := sorted(available.keys() - wanted - unused):
        raise BadCheckpoint(
            f"{source.description} has {len(extra)} tensors that a {source.config['model_type']} model does not, "
            f"the first is {extra[0]}",
            hint="is it a finetune with layers of its own? r1mac cannot convert those",
        )


def _check_shape(
    name: str, shape: tuple[int, ...], sourcing: Sourcing, available: Mapping[str, tuple[int, ...]]
) -> None:
    match sourcing.kind:
        case "same":
            expected = shape
        case "stack":
            expected = shape[1:]
        case "keys" | "values":
            # Keys and values of one head share a block of rows; each half is checked where both are known.
            found = available[sourcing.names[0]]
            heads, wanted_rank = shape[0], shape[1] if sourcing.kind == "keys" else shape[2]
            if len(found) == 2 and found[1] == wanted_rank and found[0] % heads == 0:  # noqa: PLR2004
                return
            expected = (found[0] if found else 0, wanted_rank)
    for source_name in sourcing.names:
        if available[source_name] != expected:
            raise BadCheckpoint(
                f"{source_name} is {list(available[source_name])} and config.json makes it {list(expected)} "
                f"(for {name})",
                hint="config.json and the weights are not of the same model",
            )
