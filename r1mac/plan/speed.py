"""How fast a model answers on a Mac: forecast from its shape and the chip, before anything is downloaded.

Decoding one token reads every active weight and the whole cache once, and launches a fixed number of kernels:

    seconds = read_bytes / (share x bandwidth) + kernels x KERNEL_SECONDS + expert layers x EXPERT_LAYER_SECONDS
              + cached tokens x (kv_bytes / (CACHE_SHARE x bandwidth) + attention operations / arithmetic)

Prefill is arithmetic, and each of its steps reads the weights once. Constants are few and belong to kinds of
chips, never to a model: ``scripts/fit-speeds`` fits them to the published runs of tests/vectors/speeds.csv.
"""

import re
from math import ceil
from typing import Literal, NamedTuple

from r1mac.catalog.arch import ArchSpec, LatentAttention
from r1mac.machine.base import HardwareProfile
from r1mac.machine.chips import find_chip

# Made by scripts/fit-speeds.
# Share of the stated bandwidth that reading weights reaches; two joined dies reach less of their sum.
BANDWIDTH_SHARE = 0.88
ULTRA_BANDWIDTH_SHARE = 0.752
# The same of reading the KV cache: its pieces are small.
CACHE_SHARE = 0.6
# From one GPU kernel to the next, and what routing adds to a layer of experts (sorts, gathers). The latter was
# measured on DeepSeek's routing only, which is the only one that arch.py knows.
KERNEL_SECONDS = 2.6e-6
EXPERT_LAYER_SECONDS = 142e-6
# Operations a second that prefill reaches on one GPU core, and how much of that a mixture of experts reaches.
CORE_OPERATIONS_PER_S = {"M3": 279e9, "M4": 323e9}
EXPERT_SHARE = 0.839

# Families without a published run of MLX, by their kin. Apple states 2.6 TFLOPS for the 8 cores of the M1 and 3.6 for
# the 10 of the M2: a core of the former has 0.9 of the latter's. Later families are taken for the newest one here.
_KIN_CORES = {"M1": ("M3", 0.9), "M2": ("M3", 1.0)}
_NEWEST_MEASURED_FAMILY = "M4"
# From the M5 on, cores have matrix units, which MLX uses from macOS 26.2 on. In Apple's own runs of MLX on M5 and M4
# the first token of six models came up to 4.1 times sooner; a cautious figure.
_MATRIX_SPEEDUP = 3.6
_MATRIX_FAMILY = 5
_MATRIX_MACOS = (26, 2)
# Chips of which at least one published decode was fitted.
MEASURED_CHIPS = frozenset({"M2 Ultra", "M3 Pro", "M3 Max", "M3 Ultra", "M4 Max"})

# Kernels of one layer for one token, counted in the graphs that mlx-lm 0.32 builds (norms, rotary embedding,
# attention and the gated activation are one each); a bias and a norm of queries and keys are kernels of their own.
_GROUPED_KERNELS = 17
_LATENT_KERNELS = 25
_BIAS_KERNELS = 3
_QK_NORM_KERNELS = 2

DEFAULT_STEP_TOKENS = 2048
# A real run may take this much of the forecast time: between a chip that reaches all of its bandwidth and low power
# mode, in which the same Mac was seen to be 3.8 times slower.
_LEAST_RATIO, _MOST_RATIO = 0.6, 5.0
# Reading fewer tokens than this tells more about starting than about reading.
_MIN_TELLING_PROMPT_TOKENS = 256


class Calibration(NamedTuple):
    """How long real runs on this machine took, as a multiple of what was forecast for them."""

    decode_ratio: float = 1.0
    prefill_ratio: float = 1.0


class TokenWork(NamedTuple):
    """What tokens cost whatever the machine.

    Attributes:
        read_bytes: weights that decoding one token reads.
        weight_bytes: all weights, which a long step of prefill reads.
        kv_bytes: what the cache holds of one token, and decoding reads again for each later one.
        kernel_count: kernels that decoding one token launches.
        expert_layer_count: layers with a router.
        prompt_operations: multiplications and additions for one token of a prompt.
        prompt_pair_operations: the same for one token looking at one before it.
        step_token_operations: what each step of prefill spends on each token cached before it.
        cached_token_operations: what decoding one token spends on each cached one.
    """

    read_bytes: float
    weight_bytes: int
    kv_bytes: float
    kernel_count: int
    expert_layer_count: int
    prompt_operations: float
    prompt_pair_operations: int
    step_token_operations: int
    cached_token_operations: int


class Speed(NamedTuple):
    """How fast one model is on one machine.

    Attributes:
        token_seconds: to decode a token with an empty cache.
        cached_token_seconds: what each cached token adds to that.
        prompt_token_seconds: arithmetic for one token of a prompt.
        prompt_pair_seconds: arithmetic for one token of a prompt looking at one before it.
        step_seconds: to read the weights for a full step of prefill.
        step_cached_token_seconds: what each token cached before it adds to a step.
        step_tokens: length of a step.
        basis: «measured»: published runs on this chip were fitted; «kin»: none is known, and its relatives stand for
            it; «calibrated»: runs on this very machine were taken into account.
        calibration: what those runs showed.
    """

    token_seconds: float
    cached_token_seconds: float
    prompt_token_seconds: float
    prompt_pair_seconds: float
    step_seconds: float
    step_cached_token_seconds: float
    step_tokens: int
    basis: Literal["measured", "kin", "calibrated"]
    calibration: Calibration = Calibration()

    def decode_tokens_per_s(self, context_tokens: int) -> float:
        """Return how fast answers are written when *context_tokens* are in the cache."""
        return 1 / (self.token_seconds + context_tokens * self.cached_token_seconds)

    def prefill_tokens_per_s(self, prompt_tokens: int) -> float:
        """Return how fast a prompt of that length is read, on the average of its tokens."""
        return prompt_tokens / self.prefill_seconds(prompt_tokens)

    def prefill_seconds(self, prompt_tokens: int) -> float:
        """Return how long reading a prompt takes, into an empty cache."""
        step_count = ceil(prompt_tokens / self.step_tokens)
        full_steps, rest_tokens = divmod(prompt_tokens, self.step_tokens)
        # A few tokens meet a few experts only.
        reading = full_steps * min(self.step_seconds, self.step_tokens * self.token_seconds)
        reading += min(self.step_seconds, rest_tokens * self.token_seconds)
        cached_before_steps = self.step_tokens * step_count * (step_count - 1) // 2
        return (
            reading
            + prompt_tokens * self.prompt_token_seconds
            + prompt_tokens**2 / 2 * self.prompt_pair_seconds
            + cached_before_steps * self.step_cached_token_seconds
        )

    def answer_seconds(self, *, prompt_tokens: int, generated_tokens: int) -> float:
        """Return how long a whole answer takes: reading the prompt, then thought and answer in a growing cache."""
        cached_in_all = generated_tokens * prompt_tokens + generated_tokens * (generated_tokens - 1) // 2
        decoding = generated_tokens * self.token_seconds + cached_in_all * self.cached_token_seconds
        return self.prefill_seconds(prompt_tokens) + decoding


def forecast(
    arch: ArchSpec,
    hardware: HardwareProfile,
    *,
    stored_bytes: int,
    kv_bytes_per_token: float,
    read_bytes: float | None = None,
    step_tokens: int = DEFAULT_STEP_TOKENS,
    calibration: Calibration | None = None,
) -> Speed | None:
    """Return how fast a model is that fits into memory, or None where nothing is known of the machine.

    Args:
        arch: the model's shape.
        hardware: the machine. None is returned for one that is no Mac, is virtual, or has an unknown chip.
        stored_bytes: the weights in memory.
        kv_bytes_per_token: what the cache holds of one token.
        read_bytes: what decoding one token reads of the weights; by default their mean width times the values
            read, which is wrong for recipes that store experts at other bits than the rest.
        step_tokens: longest step of prefill.
        calibration: what real runs on this machine showed.
    """
    chip = chip_traits(hardware)
    if chip is None:
        return None
    work = token_work(arch, stored_bytes=stored_bytes, read_bytes=read_bytes, kv_bytes_per_token=kv_bytes_per_token)
    decode_ratio, prefill_ratio = map(_plausible, calibration or Calibration())
    bandwidth = (ULTRA_BANDWIDTH_SHARE if chip.ultra else BANDWIDTH_SHARE) * chip.bandwidth_bytes_per_s
    plain = chip.gpu_core_count * core_operations_per_s(chip.family)
    operations = plain * (_MATRIX_SPEEDUP if chip.matrix_units else 1) * (EXPERT_SHARE if arch.experts else 1)
    launches = work.kernel_count * KERNEL_SECONDS + work.expert_layer_count * EXPERT_LAYER_SECONDS
    # Decoding multiplies by one row at a time, for which matrix units are no use.
    cached = work.kv_bytes / (CACHE_SHARE * chip.bandwidth_bytes_per_s) + work.cached_token_operations / plain
    return Speed(
        # Whatever a run of another model showed, nothing is read faster than the memory gives it.
        token_seconds=max(
            decode_ratio * (work.read_bytes / bandwidth + launches), work.read_bytes / chip.bandwidth_bytes_per_s
        ),
        cached_token_seconds=max(decode_ratio * cached, work.kv_bytes / chip.bandwidth_bytes_per_s),
        prompt_token_seconds=prefill_ratio * work.prompt_operations / operations,
        prompt_pair_seconds=prefill_ratio * work.prompt_pair_operations / operations,
        step_seconds=prefill_ratio * work.weight_bytes / bandwidth,
        step_cached_token_seconds=prefill_ratio * work.step_token_operations / operations,
        step_tokens=step_tokens,
        basis="calibrated" if calibration else "measured" if chip.measured else "kin",
        calibration=Calibration(decode_ratio, prefill_ratio),
    )


def calibrate(
    speed: Speed,
    *,
    decode_tokens_per_s: float,
    context_tokens: int,
    prefill_tokens_per_s: float | None = None,
    prompt_tokens: int = 0,
) -> Calibration:
    """Return what a real run shows beside the *speed* that was forecast for it, to be kept for this machine.

    Args:
        speed: the forecast, calibrated already or not.
        decode_tokens_per_s: how fast the answer was written.
        context_tokens: how full the cache was meanwhile, on the average.
        prefill_tokens_per_s: how fast the prompt was read, if it was not found in a cache.
        prompt_tokens: length of that; a short one tells nothing.
    """
    decode_ratio, prefill_ratio = speed.calibration
    decode_ratio = _ratio(decode_ratio, speed.decode_tokens_per_s(context_tokens), decode_tokens_per_s)
    if prefill_tokens_per_s is not None and prompt_tokens >= _MIN_TELLING_PROMPT_TOKENS:
        prefill_ratio = _ratio(prefill_ratio, speed.prefill_tokens_per_s(prompt_tokens), prefill_tokens_per_s)
    return Calibration(decode_ratio, prefill_ratio)


def token_work(
    arch: ArchSpec, *, stored_bytes: int, kv_bytes_per_token: float, read_bytes: float | None = None
) -> TokenWork:
    """Return what tokens cost, from the shape alone; the arguments are those of forecast."""
    tensors = arch.counted_tensors
    read_values = sum(count * tensor.size * tensor.read_share for count, tensor in tensors)
    # The head works for the last token of a prompt only, the embedding is looked up.
    layer_values = sum(
        count * tensor.size * tensor.read_share for count, tensor in tensors if tensor.name.startswith("model.layers.")
    )
    pair, step_token, cached_token = _attention_operations(arch)
    expert_layer_count = sum(count for count, tensor in tensors if tensor.role == "router")
    return TokenWork(
        read_bytes=stored_bytes * read_values / arch.parameter_count if read_bytes is None else read_bytes,
        weight_bytes=stored_bytes,
        kv_bytes=kv_bytes_per_token,
        kernel_count=arch.layer_count * _layer_kernels(arch),
        expert_layer_count=expert_layer_count,
        prompt_operations=2 * layer_values,
        prompt_pair_operations=arch.layer_count * pair,
        step_token_operations=arch.layer_count * step_token,
        cached_token_operations=arch.layer_count * cached_token,
    )


class ChipTraits(NamedTuple):
    """What the forecast needs to know of a Mac.

    Attributes:
        family: such as ``"M3"``.
        ultra: whether it is two dies.
        bandwidth_bytes_per_s: as Apple states it.
        gpu_core_count: as told, or the fewest that the chip is made with.
        matrix_units: whether it has them and the system lets MLX use them.
        measured: whether a published run on this chip was fitted.
    """

    family: str
    ultra: bool
    bandwidth_bytes_per_s: int
    gpu_core_count: int
    matrix_units: bool
    measured: bool


def chip_traits(hardware: HardwareProfile) -> ChipTraits | None:
    """Return what is known of a machine's chip, or None where a forecast would be a guess."""
    facts = find_chip(hardware.chip, hardware.gpu_core_count, hardware.memory_bytes)
    match = re.fullmatch(r"Apple (?P<name>(?P<family>[AM](?P<number>\d+))(?: Pro| Max| Ultra)?)", hardware.chip)
    bandwidth = hardware.memory_bandwidth_bytes_per_s
    # A virtual machine's GPU is not the one that its chip's name promises.
    if hardware.system != "macos" or hardware.virtual or facts is None or match is None or bandwidth is None:
        return None
    new_system = hardware.macos is None or hardware.macos >= _MATRIX_MACOS
    return ChipTraits(
        family=match["family"],
        ultra=match["name"].endswith("Ultra"),
        bandwidth_bytes_per_s=bandwidth,
        gpu_core_count=hardware.gpu_core_count or min(facts.gpu_core_counts),
        matrix_units=match["family"][0] == "M" and int(match["number"]) >= _MATRIX_FAMILY and new_system,
        measured=match["name"] in MEASURED_CHIPS,
    )


def core_operations_per_s(family: str) -> float:
    """Return what a GPU core of that family reaches without matrix units."""
    if family in CORE_OPERATIONS_PER_S:
        return CORE_OPERATIONS_PER_S[family]
    kin, factor = _KIN_CORES.get(family, (_NEWEST_MEASURED_FAMILY, 1.0))
    return factor * CORE_OPERATIONS_PER_S[kin]


def _layer_kernels(arch: ArchSpec) -> int:
    if isinstance(arch.attention, LatentAttention):
        return _LATENT_KERNELS
    return _GROUPED_KERNELS + _BIAS_KERNELS * arch.qkv_bias + _QK_NORM_KERNELS * arch.qk_norm


def _attention_operations(arch: ArchSpec) -> tuple[int, int, int]:
    """Return a layer's operations: a prompt's token per token before it, a step and a decode per cached token.

    MLA expands the whole cache to keys and values in every step of prefill, and decodes in the latent's own
    width: for the family's largest model 278,528 operations a layer instead of 81,920.
    """
    attention = arch.attention
    heads = attention.head_count
    if isinstance(attention, LatentAttention):
        expanded = attention.nope_head_dim + attention.value_head_dim
        pair = 2 * heads * (expanded + attention.rope_head_dim)
        cached = 2 * heads * (2 * attention.kv_lora_rank + attention.rope_head_dim)
        return pair, 2 * heads * attention.kv_lora_rank * expanded, cached
    pair = 4 * heads * attention.head_dim
    return pair, 0, pair


def _ratio(former_ratio: float, forecast_per_s: float, measured_per_s: float) -> float:
    """Return the time that was measured as a multiple of the uncalibrated forecast."""
    return _plausible(former_ratio * forecast_per_s / measured_per_s) if measured_per_s > 0 else former_ratio


def _plausible(ratio: float) -> float:
    """Return *ratio* within what can be true, also where a file says ``nan``."""
    return min(_MOST_RATIO, max(_LEAST_RATIO, ratio))
