"""What one prefill step holds beside weights and cache, buffer by buffer.

MLX allocates a buffer when an operation is queued and frees it when its last reader has run, and it queues far
ahead of what runs. So the peak is not what one operation needs but all that lies between the operation at work and
the last one queued: about a layer. ``layer_buffers`` lists the buffers of a layer, with the dispatches of MLX's CPU
backend between which each is held. ``scripts/measure-memory`` compares the sums with ``mx.get_peak_memory``.

Metal cannot be measured here: the rules of ``_gpu_bytes`` are read from MLX's source. That for ordinary attention
reproduces published peaks; latent attention is r1mac's own, of which none are published.
"""

from functools import lru_cache
from itertools import pairwise

from r1mac.catalog.arch import ArchSpec, LatentAttention
from r1mac.plan.layer_buffers import Cut, Extent, Size, ValueTypes, layer_buffers, layer_span, layer_stop, step_extents

# On a CPU stream MLX lets 11 tasks of 10 dispatches wait, the last of them partly filled.
_DISPATCHES_AHEAD = 105
# Products with codes need no transposed view: a dispatch less for each, so that as many reach further.
_DISPATCHES_SAVED_BY_CODES = 7
# On a GPU it is 11 command buffers, each closed when it has read 50 Mi values.
_VALUES_AHEAD = 11 * 50 * 2**20


def step_bytes(arch: ArchSpec, types: ValueTypes, *, step_tokens: float, context_tokens: int, on_gpu: bool) -> int:
    """Return the most that is held at once beside weights and cache.

    Args:
        arch: the model's shape.
        types: in which it computes and caches.
        step_tokens: prompt tokens read at once.
        context_tokens: tokens in the cache after the step.
        on_gpu: whether the kernels are Metal's.
    """
    held = _gpu_bytes if on_gpu else _cpu_bytes
    return round(max(held(arch, types, *cut) for cut in step_extents(arch, step_tokens, context_tokens)))


def _cpu_bytes(arch: ArchSpec, types: ValueTypes, extent: Extent, cut: Cut) -> float:
    """Return the most that is alive at once, of a layer and of the one queued behind it."""
    most = 0.0
    for changes in _cpu_changes(arch, types, cut):
        alive = 0.0
        for size in changes:
            alive += size.of(extent)
            most = max(most, alive)
    return most


@lru_cache(maxsize=64)
def _cpu_changes(arch: ArchSpec, types: ValueTypes, cut: Cut) -> list[list[Size]]:
    """Return what comes, and negated what goes, while a layer runs, in order, for each kind of neighbours."""
    ahead = _DISPATCHES_AHEAD + _DISPATCHES_SAVED_BY_CODES * types.quantized_weights
    kinds = _layer_kinds(arch)
    found = []
    for has_experts, next_has_experts in sorted(set(pairwise(kinds)) or {(kinds[0], kinds[0])}):
        lead, end = layer_span(arch, types, has_experts=has_experts, cut=cut)
        buffers = [(buffer, 0) for buffer in layer_buffers(arch, types, has_experts=has_experts, cut=cut)]
        behind = layer_buffers(arch, types, has_experts=next_has_experts, cut=cut)
        buffers += [(buffer, end + lead) for buffer in behind]
        stop = layer_stop(arch, cut)
        stops = () if stop is None else (stop - lead - end, stop, stop + lead + end)
        # What is born counts from the moment at which it is queued; at equal places it comes before what dies.
        changes = [(_queued(buffer.born + place, ahead, stops), 0, buffer.size) for buffer, place in buffers]
        changes += [(buffer.dies + place, 1, Size(*(-part for part in buffer.size))) for buffer, place in buffers]
        found.append([size for place, _, size in sorted(changes) if place <= end])
    return found


def _queued(place: int, ahead: int, stops: tuple[int, ...]) -> int:
    """Return which dispatch is at work when that at *place* is queued: nothing is before a stop has been reached."""
    return max([place - ahead, *(stop for stop in stops if stop < place)])


def _gpu_bytes(arch: ArchSpec, types: ValueTypes, extent: Extent, cut: Cut) -> float:
    """Return what the command buffers in flight hold.

    Latent attention stops in every layer: what is in flight is at most all of a layer, with one block of the attention.

    Elsewhere keys and values dequantised for a layer take so long that the next dense layer's are queued beside them.
    The rest is held for as many layers as the command buffers have room for, and half a layer more, since they end
    anywhere; with weights counted as if they were not quantised, the published peaks of Qwen3-4B at 4 to 16 bits
    (mlx-lm's BENCHMARKS.md) agree.
    """
    most = 0.0
    for size, weights in _gpu_sizes(arch, types, cut):
        whole, fixed = size.of(extent), size.step * extent.step
        if not isinstance(arch.attention, LatentAttention):
            layers = _VALUES_AHEAD / (fixed / types.value_bytes + weights) + 0.5
            whole = max(1.0, min(layers, arch.layer_count)) * fixed + 2 * (whole - fixed)
        most = max(most, whole)
    return most


@lru_cache(maxsize=64)
def _gpu_sizes(arch: ArchSpec, types: ValueTypes, cut: Cut) -> list[tuple[Size, int]]:
    """Return for each kind of layer what its buffers take on a GPU, and its weights."""
    # The first layer is dense where any layer is.
    weights = sum(tensor.size for _, tensor in arch.counted_tensors if tensor.name.startswith("model.layers.0."))
    found = []
    kinds = _layer_kinds(arch)
    for has_experts in sorted(set(kinds[:-1] or kinds)):
        buffers = layer_buffers(arch, types, has_experts=has_experts, cut=cut)
        sizes = [buffer.size for buffer in buffers if buffer.on_gpu]
        found.append((Size(*(sum(parts) for parts in zip(*sizes, strict=True))), weights))
    return found


def _layer_kinds(arch: ArchSpec) -> list[bool]:
    """Return for each layer whether it has experts. Of the last one a prefill step computes keys and values only."""
    experts = arch.experts
    if experts is None:
        return [False] * arch.layer_count
    return [index >= experts.first_layer and index % experts.layer_stride == 0 for index in range(arch.layer_count)]
