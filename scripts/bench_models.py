"""The models that the measuring scripts beside this file run: the demo, and random ones of four layers."""

import json
import shutil
from pathlib import Path

SMALL = {
    "llama": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
    },
    "qwen2": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
    },
    "deepseek_v3": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "rope_theta": 10000.0,
        "moe_intermediate_size": 256,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "q_lora_rank": 256,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "attention_bias": False,
    },
}


def make_small(kind: str, folder: Path) -> Path:
    """Write a random model of four layers with the demo's tokenizer."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from r1mac import mlx_lm_api

    demo = demo_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, folder / name)
    vocab_size = json.loads((demo / "config.json").read_text())["vocab_size"]
    config = {
        "model_type": kind,
        "num_hidden_layers": 4,
        "vocab_size": vocab_size,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        **SMALL[kind],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mx.random.seed(0)
    weights = dict(tree_flatten(mlx_lm_api.model_skeleton(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def demo_folder() -> Path:
    """Return the folder of the demo model; it is converted when it is not there."""
    from r1mac import settings
    from r1mac.machine import detect
    from r1mac.prepare import files, target

    chosen = settings.load()
    return value_of(files.ensure_files(target.resolve("demo", chosen), chosen, detect.detect()))


def load_demo():
    """Return the folder of the demo model, and its engine as a run opens it."""
    from r1mac import settings
    from r1mac.machine import detect
    from r1mac.prepare import loading, planning, target

    chosen, machine = settings.load(), detect.detect()
    folder, demo = demo_folder(), target.resolve("demo", chosen)
    return folder, value_of(loading.load(planning.judge(demo, chosen, machine.profile()), machine, folder, chosen))


def value_of(steps):
    """Run a generator to its end and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
