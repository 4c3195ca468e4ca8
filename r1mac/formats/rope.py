"""The rotary embedding's settings in config.json, which transformers has moved."""

from collections.abc import Mapping
from typing import Any


def with_flat_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return *config* with the rotary embedding where mlx-lm reads it.

    transformers 5 saves ``rope_parameters`` and neither ``rope_theta`` nor ``rope_scaling``; mlx-lm's llama, qwen2
    and deepseek_v3 read those two alone, and would go on with their defaults.
    """
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return dict(config)
    flat = dict(config)
    if "rope_theta" in parameters:
        flat.setdefault("rope_theta", parameters["rope_theta"])
    if parameters.get("rope_type", "default") != "default" and flat.get("rope_scaling") is None:
        flat["rope_scaling"] = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return flat
