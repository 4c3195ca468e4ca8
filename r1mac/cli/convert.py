"""``r1mac convert``."""

import shlex
from pathlib import Path

import click

from r1mac.cli import options
from r1mac.machine import detect
from r1mac.settings import CHOICES


@click.command(short_help="Convert SOURCE (a folder or a GGUF file) to an MLX model.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option(
    "--bits",
    type=click.Choice([str(width) for width in CHOICES["bits"]]),
    default="4",
    show_default=True,
    help="Width of the weights; 16 only translates.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    default="64",
    show_default=True,
    help="Weights that share a scale.",
)
@click.option("--recipe", type=click.Choice(["plain"]), default="plain", show_default=True, help="One width for all.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Type of scales and of what is not quantised.  [default: the source's; bfloat16 for a quantised GGUF]",
)
@click.option("--force", is_flag=True, help="Replace OUTPUT if it is a model already.")
@options.as_json
@options.quiet
def command(
    source: Path,
    output: Path,
    bits: str,
    group_size: str,
    recipe: str,
    dtype: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert SOURCE (a folder or a GGUF file) to an MLX model.

    SOURCE is a folder of safetensors (llama, qwen2, qwen3, deepseek_v3) or a GGUF file (llama, qwen2). The
    result loads in r1mac and in mlx-lm. Weights stream through: memory does not grow with the model. OUTPUT
    appears when it is complete, never before.
    """
    from r1mac.convert.recipe import plain
    from r1mac.prepare.files import convert_to_folder
    from r1mac.ui import console
    from r1mac.ui.progress import ProgressDisplay

    assert recipe == "plain"
    made = plain(bits=int(bits), group_size=int(group_size), dtype=dtype)
    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        folder = display.run(
            convert_to_folder(source, made, output, machine=detect.detect(), replace=force, on_wait=display.wait)
        )
    if not quiet and not as_json:
        console.note(f"converted to {folder}; `r1mac run {shlex.quote(str(folder))}` runs it")
