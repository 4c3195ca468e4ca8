"""An adapter's folder: which matrices it changes, and by what. PEFT's and Unsloth's layout, and mlx-lm's."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r1mac.convert.adapter_experts import expert_halves, is_stacked
from r1mac.convert.stored import FLOAT_TYPES, RawTensor
from r1mac.errors import BadCheckpoint, BadRecipe
from r1mac.formats import folder as model_folder
from r1mac.formats.safetensors import read_header

_CONFIG = "adapter_config.json"
_PEFT_WEIGHTS, _MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapters.npz")

# Starting points that leave the base's matrices as they are; the others (PiSSA, OLoRA, LoftQ …) change them,
# so that their adapters say nothing about the base on the disk.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_UNREAD_SETTINGS = (
    "layer_replication",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "trainable_token_indices",
    "target_parameters",
    "use_bdlora",
)

_PEFT_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.(?P<kind>weight|bias))?$"
)
_MLX_PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_a|lora_b|m)$")

Part = Literal["a", "b", "magnitude", "bias"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """A change of one matrix: ``scale x B A``, and DoRA's length for each row where it has one.

    Attributes:
        a: ``[rank, columns]``, or its transpose where *a_transposed*.
        b: ``[rows, rank]``, or its transpose where *b_transposed*.
        magnitude: ``[rows]``; the merged row is stretched to that length.
        bias: ``[rows]``, added to the module's bias after *scale*.
    """

    a: RawTensor
    b: RawTensor
    scale: float
    a_transposed: bool = False
    b_transposed: bool = False
    magnitude: RawTensor | None = None
    bias: RawTensor | None = None

    @property
    def rank(self) -> int:
        """The rank of the change."""
        return self.a.shape[-1 if self.a_transposed else 0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the matrix that it changes."""
        rows = self.b.shape[-1 if self.b_transposed else 0]
        return (rows, self.a.shape[0 if self.a_transposed else -1])

    @property
    def parts(self) -> tuple[RawTensor, ...]:
        """The tensors that it is made of."""
        return tuple(part for part in (self.a, self.b, self.magnitude, self.bias) if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What an adapter does, by the names of the base's tensors.

    Attributes:
        changes: low-rank changes of matrices.
        replacements: tensors that take the place of the base's (``modules_to_save``, biases, full finetunes).
        base: the model that it says it was trained on, or ''.
        ties_embeddings: whether it was trained with PEFT's ``ensure_weight_tying``.
    """

    folder: Path
    kind: Literal["PEFT", "mlx-lm"]
    base: str
    ties_embeddings: bool = False
    changes: Mapping[str, LowRank] = field(default_factory=dict)
    replacements: Mapping[str, RawTensor] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter in a folder; only headers are read.

    Raises:
        BadCheckpoint: it is not an adapter, is damaged, is pickle, or holds a tensor that is not understood.
        BadRecipe: it is of a kind that cannot be merged exactly.
    """
    folder = folder.expanduser()
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise BadCheckpoint(f"there is no adapter at {folder}", hint="check the path")
    config = model_folder.read_json(folder / _CONFIG)
    for name, read in ((_PEFT_WEIGHTS, _read_peft), (_MLX_WEIGHTS, _read_mlx)):
        if (path := folder / name).is_file():
            raw = {entry.name: RawTensor(path, entry) for entry in read_header(path).values()}
            _check_types(raw)
            return read(folder, config, raw)
    for name in _PICKLES:
        if (folder / name).exists():
            raise BadCheckpoint(
                f"{folder / name} is not safetensors: pickle can run code when it is opened",
                hint=f"save the adapter as {_PEFT_WEIGHTS} (PEFT: save_pretrained(..., safe_serialization=True))",
            )
    raise BadCheckpoint(
        f"{folder} has neither {_PEFT_WEIGHTS} (PEFT, Unsloth) nor {_MLX_WEIGHTS} (mlx-lm)",
        hint="name the folder that holds the adapter's weights",
    )


def _check_types(raw: Mapping[str, RawTensor]) -> None:
    for name, tensor in raw.items():
        if tensor.dtype not in FLOAT_TYPES:
            raise BadCheckpoint(
                f"{name} in {tensor.path.name} is {tensor.dtype}, not a number of an adapter", hint="fetch it again"
            )


def _read_peft(folder: Path, config: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Adapter:
    _check_peft_kind(folder, config)
    parts: dict[str, dict[str, RawTensor]] = {}
    replacements: dict[str, RawTensor] = {}
    for name, tensor in raw.items():
        bare = name.removeprefix("base_model.model.")
        if match := _PEFT_PART.match(bare):
            part = "bias" if match["kind"] == "bias" else match["part"]
            parts.setdefault(match["module"], {})[part] = tensor
        elif ".lora_" in bare or "trainable_tokens" in bare:
            raise BadCheckpoint(f"{name} is a part of an adapter that r1mac does not know", hint="merge it with PEFT")
        else:
            replacements[_saved_name(bare)] = tensor
    changes = {f"{module}.weight": _peft_change(module, found, config) for module, found in parts.items()}
    base = config.get("base_model_name_or_path") or ""
    return Adapter(
        folder=folder,
        kind="PEFT",
        base=str(base),
        ties_embeddings=bool(config.get("ensure_weight_tying")),
        changes=changes,
        replacements=replacements,
    )


def _check_peft_kind(folder: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2].upper()
    start = config.get("init_lora_weights", True)
    problem = None
    if kind != "LORA":
        problem = f"is of PEFT's kind {kind}"
    elif start not in _PLAIN_STARTS:
        problem = f"was started with {start!r}, which changes the base's own matrices,"
    elif unread := [name for name in _UNREAD_SETTINGS if config.get(name)]:
        problem = f"uses {unread[0]}"
    if problem:
        raise BadRecipe(
            f"the adapter in {folder} {problem} and r1mac merges only LoRA and DoRA",
            hint="merge it with PEFT (merge_and_unload, save_pretrained), and convert the result",
        )


def _saved_name(name: str) -> str:
    """Return the base's name of a tensor that PEFT saved whole."""
    for wrapper in (".modules_to_save.default.", ".modules_to_save.", ".original_module.", ".base_layer."):
        name = name.replace(wrapper, ".")
    return name


def _peft_change(module: str, parts: Mapping[str, RawTensor], config: Mapping[str, Any]) -> LowRank:
    embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' if embedding else ''}{half}") for half in "AB")
    _require_halves(module, a, b)
    assert a is not None
    assert b is not None
    magnitude = parts.get("lora_magnitude_vector")
    if (magnitude is None) == bool(config.get("use_dora")):
        raise BadCheckpoint(
            f"{module} has {'no' if magnitude is None else 'a'} lora_magnitude_vector, and {_CONFIG} says use_dora "
            f"{bool(config.get('use_dora'))}",
            hint="save or fetch the adapter again",
        )
    if embedding and magnitude is not None:
        raise BadRecipe(
            f"{magnitude.name} is DoRA on an embedding, which r1mac does not merge",
            hint="merge it with PEFT (merge_and_unload, save_pretrained), and convert the result",
        )
    rank = a.shape[0]
    said_rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if said_rank != rank or not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise BadCheckpoint(
            f"{a.name} has rank {rank}, and {_CONFIG} says rank {said_rank!r} and lora_alpha {alpha!r}",
            hint="config and weights are not of the same adapter; fetch or save it again",
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not embedding:
        return LowRank(a=a, b=b, scale=scale, magnitude=magnitude, bias=parts.get("bias"))
    # An embedding's matrix is the transpose of B A.
    return LowRank(a=b, b=a, scale=scale, a_transposed=True, b_transposed=True)


def _by_pattern(patterns: object, module: str, default: object) -> Any:
    """Return the value whose pattern fits the end of a module's name, as PEFT's ``get_pattern_key`` finds it."""
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise BadCheckpoint(f"{_CONFIG} has a pattern {pattern!r} that is none: {error}", hint="mend it") from error
    return default


def _read_mlx(folder: Path, config: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Adapter:
    kind, base = config.get("fine_tune_type", "lora"), str(config.get("model") or "")
    if kind == "full":
        return Adapter(folder=folder, kind="mlx-lm", base=base, replacements=raw)
    parts: dict[str, dict[str, RawTensor]] = {}
    for name, tensor in raw.items():
        match = _MLX_PART.match(name)
        if match is None or kind not in {"lora", "dora"}:
            raise BadCheckpoint(
                f"{name} is no part of an adapter of the kind {kind!r} that r1mac knows",
                hint="fuse it with mlx_lm.fuse",
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor
    scale = _mlx_scale(folder, config)
    changes: dict[str, LowRank] = {}
    for module, found in parts.items():
        a, b = found.get("lora_a"), found.get("lora_b")
        if a is not None and b is not None and kind == "lora" and is_stacked(module, a, b):
            for expert in expert_halves(module, a, b):
                changes[f"{expert.module}.weight"] = LowRank(a=expert.a, b=expert.b, scale=scale)
        else:
            changes[f"{module}.weight"] = _mlx_change(module, found, scale, dora=kind == "dora")
    return Adapter(folder=folder, kind="mlx-lm", base=base, changes=changes)


def _mlx_scale(folder: Path, config: Mapping[str, Any]) -> float:
    """Return what a change is multiplied by; of «alpha» and «scale» together mlx-lm has had two readings."""
    parameters = config.get("lora_parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    scale, alpha, rank = (parameters.get(key) for key in ("scale", "alpha", "rank"))
    if (scale is None) == (alpha is None):
        raise BadCheckpoint(
            f"{folder / _CONFIG} says scale {scale!r} and alpha {alpha!r}, and exactly one of them is needed",
            hint="leave the one that the training used under lora_parameters",
        )
    try:
        return float(scale) if scale is not None else float(alpha) / float(rank)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise BadCheckpoint(
            f"{folder / _CONFIG} says scale {scale!r}, alpha {alpha!r} and rank {rank!r}, which are no numbers",
            hint="mend lora_parameters in that file",
        ) from error


def _mlx_change(module: str, parts: Mapping[str, RawTensor], scale: float, *, dora: bool) -> LowRank:
    a, b, magnitude = parts.get("lora_a"), parts.get("lora_b"), parts.get("m")
    _require_halves(module, a, b)
    assert a is not None
    assert b is not None
    if (magnitude is None) == dora:
        raise BadCheckpoint(
            f"{module} has {'no' if magnitude is None else 'a'} m, and {_CONFIG} says {'dora' if dora else 'lora'}",
            hint="save or fetch the adapter again",
        )
    if module.endswith("embed_tokens"):
        # lora_a is [vocabulary, rank] here, and the embedding's change lora_a lora_b.
        return LowRank(a=b, b=a, scale=scale, magnitude=magnitude)
    return LowRank(a=a, b=b, scale=scale, a_transposed=True, b_transposed=True, magnitude=magnitude)


def _require_halves(module: str, a: RawTensor | None, b: RawTensor | None) -> None:
    if a is None or b is None:
        raise BadCheckpoint(
            f"the adapter has one half of its change of {module} and not the other", hint="save or fetch it again"
        )
    for half in (a, b):
        if len(half.shape) != 2:  # noqa: PLR2004
            raise BadCheckpoint(
                f"{half.name} is {list(half.shape)}, not a matrix: r1mac does not merge into stacked experts",
                hint="fuse it with the tool that made it, and convert the result",
            )
