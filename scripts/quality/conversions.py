"""The commands whose results are compared; each makes the folder that is appended to it."""

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
# Uniform widths by the bits that a weight takes with its share of scale and bias: bits, and weights that share them.
UNIFORM = {
    "2.25": (2, 128), "2.5": (2, 64), "3.0": (2, 32), "3.25": (3, 128), "3.5": (3, 64), "4.0": (3, 32),
    "4.25": (4, 128), "4.5": (4, 64),
}  # fmt: skip
GPTQ_WIDTHS = {2, 4, 8}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all commands share.

    Attributes:
        source: the model, at 16 bits.
        work: folder of all results, and of what `r1mac calibrate` measured.
        samples: pieces of 512 tokens that mlx-lm's learned methods read; -1 for all.
        data: a folder with the calibration text as mlx-lm's DWQ reads it.
    """

    source: Path
    work: Path
    samples: int
    data: Path

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
        named[f"mlx_lm.convert-{bits}"] = (*bench.rounded(bits), "--mlx-path")
        named[f"r1mac-{bits}"] = (*bench.plain("--bits", str(bits)), "-o")
        named[f"r1mac-quality-{bits}"] = (*bench.quality("--bits", str(bits)), "-o")
    return named


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
    """Return, for each of *wanted* bits a weight, the uniform width that takes them and r1mac's choice of widths."""
    named: dict[str, Command] = {}
    for budget in wanted:
        bits, group_size = UNIFORM[budget]
        uniform = bench.quality("--bits", str(bits), "--group-size", str(group_size))
        named[f"uniform-{budget}"] = (*uniform, "-o")
        named[f"chosen-{budget}"] = (*bench.quality("--bits-per-weight", budget), "-o")
    return named


def learned(bench: Bench, widths: Iterable[int]) -> dict[str, Command]:
    """Return mlx-lm's learned methods at the bytes of its plain conversion, with r1mac's calibration text."""
    model, samples = ("--model", str(bench.source)), ("--num-samples", str(bench.samples))
    named: dict[str, Command] = {}
    for bits in map(str, widths):
        size = ("--bits", bits, "--group-size", "64")
        if int(bits) in GPTQ_WIDTHS:
            named[f"mlx_lm.gptq-{bits}"] = (
                "mlx_lm", "gptq", *model, *samples, *size, "--fallback-bits", bits, "--mlx-path",
            )  # fmt: skip
        named[f"mlx_lm.awq-{bits}"] = (
            "mlx_lm", "awq", *model, *samples, *size, "--embed-bits", bits, "--embed-group-size", "64", "--mlx-path",
        )  # fmt: skip
        rounded = ("--quantized-model", str(bench.work / f"mlx_lm.convert-{bits}"))
        data = ("--data-path", str(bench.data), "--max-seq-length", "257")
        named[f"mlx_lm.convert-{bits}"] = (*bench.rounded(int(bits)), "--mlx-path")
        named[f"mlx_lm.dwq-{bits}"] = ("mlx_lm", "dwq", *model, *rounded, *data, *samples, "--mlx-path")
        named[f"r1mac-quality-{bits}"] = (*bench.quality("--bits", bits), "-o")
    return named
