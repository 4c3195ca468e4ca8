"""Which experts a token takes: in float32, as DeepSeek's own code chooses them."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.deepseek_v3 import ModelArgs, MoEGate

from r1mac import mlx_lm_api
from r1mac.engine.layers.router import install_router
from tests.checkpoints import CONFIGS

# R1's router, with a narrower input.
R1 = {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "hidden_size": 512}
R1 |= {"norm_topk_prob": True, "routed_scaling_factor": 2.5}
TOKENS = 2000


def make_router(*, bias: float = 0.05, dtype: mx.Dtype = mx.bfloat16, **changes) -> MoEGate:
    """Return mlx-lm's router with random weights in *dtype*, and biases around *bias*."""
    args = ModelArgs(**(R1 | changes))
    router = MoEGate(args)
    mx.random.seed(1)
    router.weight = (mx.random.normal(router.weight.shape) / args.hidden_size**0.5).astype(dtype)
    router.e_score_correction_bias = bias + 0.02 * mx.random.normal((args.n_routed_experts,))
    return router


def installed(router: MoEGate) -> MoEGate:
    """Return the router as a loaded model has it."""
    model = SimpleNamespace(layers=[SimpleNamespace(mlp=SimpleNamespace(gate=router))])
    install_router(model)
    return model.layers[0].mlp.gate


def inputs(dtype: mx.Dtype = mx.bfloat16, tokens: int = TOKENS) -> mx.array:
    """Return random hidden states ``[1, tokens, hidden]``."""
    mx.random.seed(2)
    return mx.random.normal((1, tokens, R1["hidden_size"])).astype(dtype)


def reference(router: MoEGate, x: mx.array, *, lost: float = -np.inf) -> tuple[list[set[int]], np.ndarray]:
    """Return in float64 which experts each token takes, and the weight of every expert, as DeepSeek's paper has it."""
    wide = {name: np.array(part.astype(mx.float32), np.float64) for name, part in router.parameters().items()}
    scores = 1 / (1 + np.exp(-np.array(x.astype(mx.float32), np.float64)[0] @ wide["weight"].T))
    ranked = scores + wide["e_score_correction_bias"]
    groups = ranked.reshape(len(ranked), router.n_group, -1)
    of_groups = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
    kept = np.argsort(-of_groups, axis=-1)[:, : router.topk_group]
    mask = np.full_like(groups, lost)
    for token, best in enumerate(kept):
        mask[token, best] = groups[token, best]
    chosen = np.argsort(-mask.reshape(ranked.shape), axis=-1)[:, : router.top_k]
    weights = np.zeros_like(scores)
    picked = np.take_along_axis(scores, chosen, axis=-1)
    picked = (
        router.routed_scaling_factor * picked / (picked.sum(axis=-1, keepdims=True) if router.norm_topk_prob else 1)
    )
    np.put_along_axis(weights, chosen, picked, axis=-1)
    return [set(row) for row in chosen.tolist()], weights


def chosen_by(router: MoEGate, x: mx.array) -> tuple[list[set[int]], np.ndarray]:
    """Return the same of a router."""
    experts, weights = (np.array(part.astype(mx.float32)) for part in router(x))
    spread = np.zeros((x.shape[1], router.n_routed_experts))
    np.put_along_axis(spread, experts[0].astype(int), weights[0], axis=-1)
    return [set(row) for row in experts[0].astype(int).tolist()], spread


def test_bfloat16_activations_choose_what_exact_sums_choose():
    """Every token takes the experts that float64 finds; with mlx-lm's own router some in a hundred take others."""
    x = inputs()
    expected, weights = reference(make_router(), x)

    ours, our_weights = chosen_by(installed(make_router()), x)
    theirs, _ = chosen_by(make_router(), x)

    assert ours == expected
    assert np.abs(our_weights - weights).max() < 1e-5
    others = sum(one != other for one, other in zip(theirs, expected, strict=True))
    assert others > TOKENS // 100


@pytest.mark.parametrize(
    "changes",
    [
        {"n_group": 1, "topk_group": 1},
        {"n_group": 8, "topk_group": 8},
        {"n_group": 4, "topk_group": 1},
        {"norm_topk_prob": False},
        {"num_experts_per_tok": 1, "norm_topk_prob": False},
    ],
    ids=str,
)
def test_every_way_to_group_chooses_as_the_reference(changes: dict):
    """No groups, all groups kept, one of four, weights not normalised, one expert: choice and weights agree."""
    x = inputs(mx.float32, 200)
    expected, weights = reference(make_router(**changes), x)

    ours, our_weights = chosen_by(installed(make_router(**changes)), x)

    assert ours == expected
    assert np.abs(our_weights - weights).max() < 1e-5


def test_an_expert_of_a_lost_group_is_never_taken():
    """Where all ranks are negative a group that lost would win if it were set to 0, as mlx-lm does it."""
    x = inputs(mx.float32, 50)
    router = make_router(bias=-2.0, dtype=mx.float32)
    expected, _ = reference(router, x)

    theirs, _ = chosen_by(router, x)
    ours, _ = chosen_by(installed(router), x)

    assert ours == expected
    assert theirs != expected


def test_only_routers_are_changed():
    """A model without experts is left as it is, and a dense layer beside expert layers too."""
    models = [mlx_lm_api.model_skeleton(CONFIGS[kind]) for kind in ("llama", "deepseek_v3")]
    for model in models:
        install_router(model)

    kinds = {type(module).__name__ for model in models for _, module in model.named_modules()}
    assert {"Float32Router", "DeepseekV3MLP", "MLP"} <= kinds
    assert "MoEGate" not in kinds
