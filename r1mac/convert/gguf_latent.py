"""The part of config.json that only DeepSeek's models have, from a GGUF file's metadata."""

from typing import Any

from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import GGUFFile

_SIGMOID = 2

# (routed experts, experts at work): (groups, groups at work). Files from before mid-2025 do not say the groups, and
# llama.cpp then ran without them; these are the settings of the published models.
_KNOWN_GROUPS = {(256, 8): (8, 4)}


def latent_attention_config(file: GGUFFile) -> dict[str, Any]:
    """Return the fields of config.json for multi-head latent attention and the mixture of experts.

    Raises:
        BadCheckpoint: a field is missing, or the experts are chosen by another function than a sigmoid.
    """
    rope = file.required("rope.dimension_count")
    # Newer files call the heads' own widths key_length_mla; key_length is the latent's there.
    key = file.get("attention.key_length_mla") or file.required("attention.key_length")
    value = file.get("attention.value_length_mla") or file.required("attention.value_length")
    heads = file.required("attention.head_count")
    fields: dict[str, Any] = {
        "num_key_value_heads": heads,
        "q_lora_rank": int(file.get("attention.q_lora_rank") or 0) or None,
        "kv_lora_rank": file.required("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": int(key) - rope,
        "v_head_dim": int(value),
        "attention_bias": False,
        "rope_scaling": None,
    }
    return fields | _experts_config(file)


def _experts_config(file: GGUFFile) -> dict[str, Any]:
    gating = file.get("expert_gating_func", _SIGMOID)
    if gating != _SIGMOID:
        raise BadCheckpoint(
            f"{file.path.name} chooses its experts by function {gating!r} and not by a sigmoid: it is of a DeepSeek "
            "before V3",
            hint="r1mac converts DeepSeek V3, R1 and their finetunes",
        )
    routed, active = file.required("expert_count"), file.required("expert_used_count")
    groups, groups_used = _KNOWN_GROUPS.get((routed, active), (1, 1))
    return {
        "n_routed_experts": routed,
        "num_experts_per_tok": active,
        "n_shared_experts": int(file.get("expert_shared_count", 0)) or None,
        "moe_intermediate_size": file.required("expert_feed_forward_length"),
        "first_k_dense_replace": int(file.get("leading_dense_block_count", 0)),
        "moe_layer_freq": 1,
        "n_group": int(file.get("expert_group_count", groups)),
        "topk_group": int(file.get("expert_group_used_count", groups_used)),
        "norm_topk_prob": bool(file.get("expert_weights_norm", False)),
        "routed_scaling_factor": float(f"{file.get('expert_weights_scale', 1.0):.6g}"),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
