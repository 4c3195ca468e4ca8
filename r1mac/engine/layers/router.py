"""DeepSeek's choice of experts, in float32.

mlx-lm multiplies by the router's matrix in the model's own type; in bfloat16 that rounds the logits to 8 bits and
chooses other experts for some tokens in a hundred. DeepSeek's own code and transformers compute them in float32.
"""

from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api


def install_router(model: nn.Module) -> None:
    """Give every router of *model* this forward pass, and keep its matrix in float32, as it is multiplied."""
    for layer in model.layers:
        router: Any = getattr(layer.mlp, "gate", None)
        if type(router) is mlx_lm_api.MoEGate:
            router.__class__ = Float32Router
            router.weight = router.weight.astype(mx.float32)


class Float32Router(mlx_lm_api.MoEGate):  # type: ignore[misc]
    """mlx-lm's module with another forward pass."""

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Return which experts each token takes and with which weights, ``[..., active]`` each.

        Args:
            x: ``[..., hidden]``, in any type.
        """
        chosen: tuple[mx.array, mx.array] = _choose(
            x.astype(mx.float32) @ self.weight.T,
            self.e_score_correction_bias,
            self.top_k,
            self.n_group,
            self.topk_group,
            self.routed_scaling_factor,
            self.norm_topk_prob,
        )
        return chosen


@mx.compile
def _choose(
    logits: mx.array,
    bias: mx.array,
    active: int,
    groups: int,
    active_groups: int,
    scale: float,
    normalised: bool,
) -> tuple[mx.array, mx.array]:
    """Return experts and weights as transformers' ``DeepseekV3TopkRouter`` does: what its groups lose is -inf."""
    scores = mx.sigmoid(logits)
    ranked = scores + bias
    if groups > active_groups:
        ranked = mx.unflatten(ranked, axis=-1, shape=(groups, -1))
        of_groups = mx.topk(ranked, 2, axis=-1).sum(axis=-1, keepdims=True)
        lost = groups - active_groups
        worst = mx.argpartition(of_groups, kth=lost - 1, axis=-2)[..., :lost, :]
        ranked = mx.put_along_axis(ranked, worst, mx.array(-mx.inf), axis=-2)
        ranked = mx.flatten(ranked, -2, -1)
    experts = mx.argpartition(-ranked, kth=active - 1, axis=-1)[..., :active]
    weights = mx.take_along_axis(scores, experts, axis=-1)
    if active > 1 and normalised:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return experts, weights * scale
