"""What is known of a model, for a person or a program."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mac.catalog.arch import ArchSpec, LatentAttention
from r1mac.errors import UnknownModel
from r1mac.formats import folder as model_folder
from r1mac.formats.quality import as_data, load_quality
from r1mac.plan.memory import Quantization, kv_bytes_per_token
from r1mac.plan.recipe import WIDE_BITS, configured_recipe, recipe_bytes
from r1mac.prepare.planning import arch_of
from r1mac.prepare.target import Target, find_stored
from r1mac.prepare.wish import recipe_at
from r1mac.settings import CHOICES, Settings


def facts_of(target: Target, settings: Settings) -> dict[str, Any]:
    """Return shape, sizes, quantisation, cache cost and licence of *target*, names carrying their units.

    Raises:
        UnknownModel: it is neither on this disk nor in the catalog.
        BadCheckpoint: its files are damaged.
    """
    stored = find_stored(target, settings)
    folder = stored.path if stored else target.folder
    facts: dict[str, Any] = {"model": target.title}
    if folder is not None:
        facts |= _folder_facts(folder)
    elif target.spec is not None:
        facts |= _shape_facts(target.spec.arch)
        facts["size_bytes_by_bits"] = {
            bits: recipe_bytes(target.spec.arch, recipe_at(target.spec, bits)) for bits in CHOICES["bits"]
        }
    else:
        raise UnknownModel(
            f"{target.title} is not on this disk, and not in the catalog",
            hint=f"`r1mac pull {target.title}` fetches it",
        )
    if target.spec is not None:
        facts |= {
            "licence": target.spec.licence,
            "names": list(target.spec.aliases),
            "source_repo": target.spec.source_repo,
            "source_bytes": target.spec.source_bytes,
            "ready_repos_by_bits": dict(target.spec.mlx_repos),
        }
    if stored is not None:
        manifest = stored.manifest
        facts |= {"made_from": manifest.source, "revision": manifest.revision, "made": manifest.created}
    return facts


def _folder_facts(folder: Path) -> dict[str, Any]:
    config = model_folder.read_config(folder)
    tensors = model_folder.read_tensors(folder)
    types: dict[str, int] = {}
    for _, entry in tensors.values():
        types[entry.dtype] = types.get(entry.dtype, 0) + entry.size_bytes
    size_bytes = sum(types.values())
    arch = arch_of(config, str(folder))
    return {
        "path": os.fspath(folder),
        **_shape_facts(arch),
        "size_bytes": size_bytes,
        "bits_per_weight": round(8 * size_bytes / arch.parameter_count, 3),
        "quantization": _quantization(config, arch),
        "bytes_by_type": types,
        "licence": _card_licence(folder),
        **_quality_facts(folder),
    }


def _quality_facts(folder: Path) -> dict[str, Any]:
    """Return what was measured of the model, if anything was."""
    quality = load_quality(folder)
    return {} if quality is None else {"quality": as_data(quality)}


def _card_licence(folder: Path) -> str | None:
    """Return the licence that a model card's front matter names, if there is a card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    _, _, front = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    match = re.search(r"^license:[ \t]*(\S.*)$", front.partition("\n---")[0], re.MULTILINE)
    return match[1].strip() if match else None


def _shape_facts(arch: ArchSpec) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "architecture": arch.model_type,
        "parameter_count": arch.parameter_count,
        "active_parameter_count": arch.active_parameter_count,
        "layer_count": arch.layer_count,
        "hidden_size": arch.hidden_size,
        "vocab_size": arch.vocab_size,
        "max_context_tokens": arch.max_context_tokens,
        "kv_bytes_per_token": kv_bytes_per_token(arch),
        "attention": "latent (MLA)" if isinstance(arch.attention, LatentAttention) else "grouped queries",
    }
    if arch.experts is not None:
        facts["expert_count"] = arch.experts.routed_count
        facts["active_expert_count"] = arch.experts.active_count
    return facts


def _quantization(config: Mapping[str, Any], arch: ArchSpec) -> dict[str, Any] | None:
    """Return the width that config.json gives for all layers, and the share of the weights at each if they differ."""
    if (recipe := configured_recipe(config)) is None:
        return None
    facts = {"bits": recipe.default.bits, "group_size": recipe.default.group_size, "mode": recipe.default.mode}
    if not recipe.overrides:
        return facts
    values: dict[str, int] = {}
    for tensor in arch.tensors:
        if tensor.role == "matrix":
            width = _width_name(recipe.quantization_for(tensor.name, tensor.shape))
            values[width] = values.get(width, 0) + tensor.size
    total = sum(values.values())
    return facts | {"weights_by_width": {width: round(size / total, 4) for width, size in sorted(values.items())}}


def _width_name(width: Quantization | None) -> str:
    """Return a width as text: ``4``, ``2 (groups of 128)``, ``mxfp4``; 16 for what is not quantised."""
    if width is None:
        return str(WIDE_BITS)
    if width.mode != "affine":
        return width.mode
    usual = width.group_size == Quantization(bits=width.bits).group_size
    return str(width.bits) if usual else f"{width.bits} (groups of {width.group_size})"
