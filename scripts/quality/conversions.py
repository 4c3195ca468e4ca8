"""The commands whose results are compared; each makes the folder that is appended to it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Command = tuple[str, ...]

LINEAR_RECIPE = """
[quantize]
bits = {bits}

[[quantize.override]]
tensors = ["model.embed_tokens", "lm_head"]
bits = 6
"""
# What loses most for its bytes on the demo model: 3.66 bits for a weight of the linear layers with what scales take.
WIDER_KINDS = """
[[quantize.override]]
tensors = ["*.self_attn.v_proj", "*.self_attn.k_proj", "*.self_attn.o_proj"]
bits = 4
"""
# Widths that one model may have everywhere: bits, and weights that share a scale and a bias.
UNIFORM = tuple((bits, group_size) for bits in (2, 3, 4, 5, 6) for group_size in (32, 64))
GPTQ_WIDTHS = {2, 4, 8}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all commands share.

    Attributes:
        source: the model, at 16 bits.
        work: folder of all results, and of what `r1mac calibrate` measured.
        learned_from: what mlx-lm's learned methods learn from: the source, or a copy of it in float32.
        samples: pieces of 512 tokens that mlx-lm's learned methods read; -1 for all.
        data: a folder with the calibration text as mlx-lm's DWQ reads it.
    """

    source: Path
    work: Path
    learned_from: Path
    samples: int
    data: Path

    @property
    def shared_bits(self) -> int:
        """What a scale and a bias take."""
        config = json.loads((self.source / "config.json").read_text(encoding="utf-8"))
        return 64 if config.get("torch_dtype", config.get("dtype")) == "float32" else 32

    def plain(self, *options: str) -> Command:
        """Return r1mac's conversion by rounding."""
        return ("r1mac", "convert", str(self.source), *options, "-q", "--no-smoke", "--no-measure")

    def quality(self, *options: str) -> Command:
        """Return r1mac's conversion with what was measured."""
        return self.plain(*options, "--quality", "--statistics", str(self.work / "statistics"))

    def rounded(self, bits: int) -> Command:
        """Return mlx_lm.convert, groups of 64."""
        width = ("-q", "--q-bits", str(bits), "--q-group-size", "64")
        return ("mlx_lm", "convert", "--hf-path", str(self.source), *width)


def whole(bench: Bench, widths: Iterable[int]) -> dict[str, Command]:
    """Return conversions of the whole model, embedding included."""
    named: dict[str, Command] = {}
    for bits in widths:
        named |= rounded_and_fitted(bench, bits)
        named[f"r1mac-{bits}"] = (*bench.plain("--bits", str(bits)), "-o")
    return named


def rounded_and_fitted(bench: Bench, bits: int) -> dict[str, Command]:
    """Return what everything at this width is held against: mlx-lm's plain conversion, and r1mac's with statistics."""
    return {
        f"mlx_lm.convert-{bits}": (*bench.rounded(bits), "--mlx-path"),
        f"r1mac-quality-{bits}": (*bench.quality("--bits", str(bits)), "-o"),
    }


def linear(bench: Bench, widths: Iterable[int]) -> dict[str, Command]:
    """Return conversions that differ in their linear layers; plain rounding to the first width comes first."""
    texts = {str(bits): LINEAR_RECIPE.format(bits=bits) for bits in widths}
    texts["3-4"] = LINEAR_RECIPE.format(bits=3) + WIDER_KINDS
    named: dict[str, Command] = {}
    for name, text in texts.items():
        recipe = bench.work / f"linear-{name}.toml"
        recipe.write_text(text, encoding="utf-8")
        named[f"linear-{name}-rounded"] = (*bench.plain("--recipe", str(recipe)), "-o")
        named[f"linear-{name}-quality"] = (*bench.quality("--recipe", str(recipe)), "-o")
    return named


def budgets(bench: Bench, wanted: Iterable[str]) -> dict[str, Command]:
    """Return, for each of *wanted* bits a weight, the widest uniform width that they allow and r1mac's choice."""
    named: dict[str, Command] = {}
    for budget in wanted:
        taken, bits, group_size = uniform_within(float(budget), bench.shared_bits)
        uniform = bench.quality("--bits", str(bits), "--group-size", str(group_size))
        named[f"uniform-{taken}"] = (*uniform, "-o")
        named[f"chosen-{budget}"] = (*bench.quality("--bits-per-weight", budget), "-o")
    return named


def uniform_within(bits_per_weight: float, shared_bits: int) -> tuple[float, int, int]:
    """Return the widest of UNIFORM that takes no more, behind the bits a weight that it takes."""
    widths = [(bits + shared_bits / group_size, bits, group_size) for bits, group_size in UNIFORM]
    return max(width for width in widths if width[0] <= bits_per_weight)


def learned(bench: Bench, widths: Iterable[int], methods: Iterable[str]) -> dict[str, Command]:
    """Return mlx-lm's learned methods at the bytes of its plain conversion, with r1mac's calibration text.

    What is learned from a copy of the source in float32 has scales in float32, and beside it a copy in bfloat16.
    """
    named: dict[str, Command] = {}
    for bits in widths:
        named |= rounded_and_fitted(bench, bits)
        for method in methods:
            command = _learning(bench, method, bits)
            if command is None:
                continue
            name = f"mlx_lm.{method}-{bits}"
            if bench.learned_from == bench.source:
                named[name] = (*command, "--mlx-path")
            else:
                wide = f"{name}-float32"
                rounding = ("--hf-path", str(bench.work / wide), "--dtype", "bfloat16")
                named |= {wide: (*command, "--mlx-path"), name: ("mlx_lm", "convert", *rounding, "--mlx-path")}
    return named


def _learning(bench: Bench, method: str, bits: int) -> Command | None:
    """Return the command of one of mlx-lm's learned methods, or nothing where it does not have the width."""
    width, source = str(bits), ("--model", str(bench.learned_from), "--num-samples", str(bench.samples))
    size = ("--bits", width, "--group-size", "64")
    if method == "gptq":
        return ("mlx_lm", "gptq", *source, *size, "--fallback-bits", width) if bits in GPTQ_WIDTHS else None
    if method == "awq":
        return ("mlx_lm", "awq", *source, *size, "--embed-bits", width, "--embed-group-size", "64")
    rounded = ("--quantized-model", str(bench.work / f"mlx_lm.convert-{bits}"))
    return ("mlx_lm", "dwq", *source, *rounded, "--data-path", str(bench.data), "--max-seq-length", "257")
