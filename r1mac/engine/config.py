"""What a model's own files say beside its shape, and what mlx-lm has to be told of it. No mlx here."""

import math
from pathlib import Path
from typing import Any

from r1mac.formats.folder import read_json
from r1mac.formats.rope import with_flat_rope


def config_changes(config: dict[str, Any]) -> dict[str, Any]:
    """Return what mlx-lm must be told beyond a model's own config.json.

    R1-0528-Qwen3-8B asks for an attention factor of exactly 1 through ``attn_factor``; mlx-lm's YaRN reads only
    ``mscale`` and would make the logits 1.296 times too large. A config of transformers 5 says its rotary embedding
    where mlx-lm does not look.
    """
    flat = with_flat_rope(config)
    changes = {key: flat[key] for key in ("rope_theta", "rope_scaling") if flat.get(key) != config.get(key)}
    scaling = flat.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    asked = scaling.get("attn_factor", scaling.get("attention_factor"))
    if kind != "yarn" or asked is None or "mscale" in scaling:
        return changes
    default = 0.1 * math.log(scaling["factor"]) + 1
    if math.isclose(asked * default, 1.0, rel_tol=1e-3) or math.isclose(asked, 1.0, rel_tol=1e-3):
        return changes | {"rope_scaling": {**scaling, "mscale": 1.0, "mscale_all_dim": 1.0}}
    return changes


def end_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Return the tokens that end an answer: generation_config.json may name more than config.json."""
    generation_file = folder / "generation_config.json"
    sources = [config, read_json(generation_file) if generation_file.exists() else {}]
    ids: list[int] = []
    for source in sources:
        value = source.get("eos_token_id")
        ids.extend(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(ids)
