"""``r1mac convert``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1mac.cli import options
from r1mac.cli import quality as quality_options
from r1mac.cli.recipes import list_recipes
from r1mac.cli.size import Size
from r1mac.machine import detect

if TYPE_CHECKING:
    from r1mac.prepare.conversion import Manner, Output
    from r1mac.prepare.weights import Weights


@click.command(short_help="Convert SOURCE (a folder, a file, or a model on the Hub) to an MLX model.")
@click.argument("source", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder to make.  [default: in the store, for a model on the Hub]",
)
@click.option(
    "--bits",
    metavar="2|3|4|5|6|8|16|mxfp4|nvfp4|mxfp8",
    help="Width of the weights; 16 only translates. Several (2,3,4) are made from one read, into folders of their "
    "own: OUTPUT-2bit …, or where {bits} stands in OUTPUT.  [default: 4]",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    help="Weights that share a scale, one width for all.  [default: 64]",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Widths of their own for some matrices; plain is one width for all.  [default: the model's, or plain]",
)
@list_recipes
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Type of scales and of what is not quantised.  [default: the source's; bfloat16 for a quantised GGUF]",
)
@click.option(
    "--adapter",
    "adapters",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A LoRA or DoRA adapter (PEFT, Unsloth, mlx-lm) to merge on the way; may be given again.",
)
@quality_options.options
@click.option("--memory", type=Size(), help="The most memory to take, such as 4gb.  [default: little]")
@click.option("--max-shard", type=Size(), help="The largest weight file, such as 2gb.  [default: 5 GiB, as mlx-lm]")
@click.option("--keep-source", is_flag=True, help="Keep the weights that are fetched from the Hub.")
@click.option(
    "--no-mtp", is_flag=True, help="Leave out DeepSeek's layer that predicts further tokens; no other layer needs it."
)
@click.option("--restart", is_flag=True, help="Begin anew, and use nothing that an unfinished run left.")
@click.option("--force", is_flag=True, help="Replace OUTPUT if it is a model already.")
@click.option("--no-smoke", is_flag=True, help="Do not try the result by generating a few tokens.")
@click.option("--no-measure", is_flag=True, help="Do not compare the result with its source, for its card.")
@click.option("--dry-run", is_flag=True, help="Only say what the result, memory, disk and time would be.")
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Check a converted model against the checksums of its conversion, and try it; nothing is converted.",
)
@options.as_json
@options.quiet
def command(
    source: str | None,
    output: Path | None,
    bits: str | None,
    group_size: str | None,
    recipe: str | None,
    dtype: str | None,
    adapters: tuple[Path, ...],
    quality: bool,
    statistics: Path | None,
    calibration: Path | None,
    bits_per_weight: float | None,
    fit_bytes: int | None,
    memory: int | None,
    max_shard: int | None,
    keep_source: bool,
    no_mtp: bool,
    restart: bool,
    force: bool,
    no_smoke: bool,
    no_measure: bool,
    dry_run: bool,
    verify: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert SOURCE (a folder, a file, or a model on the Hub) to an MLX model.

    SOURCE is a folder of safetensors, a safetensors or GGUF file, a model that r1mac knows (671b), or a Hub
    repository (org/name), of llama, qwen2, qwen3 or deepseek_v3. The result loads in r1mac and in mlx-lm. Weights
    stream through: memory does not grow with the model. OUTPUT appears when it is complete, never before; a run
    that was stopped goes on when the same command is given again.
    """
    from r1mac.prepare.conversion import Manner

    options.one_thread_a_product()
    if verify is not None:
        _verify(verify, smoke=not no_smoke, as_json=as_json, quiet=quiet)
        return
    if source is None:
        raise click.UsageError("name a SOURCE, or a model to check with --verify FOLDER")
    from r1mac.prepare.weights import find_weights

    weights = find_weights(source)
    if output is None and weights.are_the_users_own and not dry_run:
        raise click.UsageError("name the folder to make with -o FOLDER")
    if output is None and adapters and not dry_run:
        raise click.UsageError("name the folder to make with -o FOLDER: with an adapter it is a model of your own")
    group = None if group_size is None else int(group_size)
    has_budget = bits_per_weight is not None or fit_bytes is not None
    asked_quality = quality_options.asked_quality(
        asked=quality, statistics=statistics, calibration=calibration, mixes=recipe is None and group is None
    )
    if has_budget:
        if bits or recipe or group or dry_run or (bits_per_weight and fit_bytes):
            raise click.UsageError(
                "--bits-per-weight and --fit choose all widths themselves, after measuring: leave out --bits, "
                "--group-size, --recipe and --dry-run, and name only one of the two"
            )
        made, asked_quality = quality_options.within_budget(
            weights, output, bits_per_weight, fit_bytes, dtype, asked_quality, adapters, as_json=as_json, quiet=quiet
        )
    else:
        made = _outputs(weights, output, bits, recipe, group, dtype)
    manner = Manner(
        memory_bytes=memory,
        max_shard_bytes=max_shard,
        restart=restart,
        replace=force,
        smoke=not no_smoke,
        quality=asked_quality,
        measures=not no_measure,
    )
    if dry_run:
        _forecast(weights, made, adapters, memory, prediction=not no_mtp, as_json=as_json)
        return
    kept = {"keep_source": keep_source, "prediction": not no_mtp}
    _convert(weights, made, manner, adapters=adapters, **kept, as_json=as_json, quiet=quiet)


def _outputs(
    weights: "Weights",
    output: Path | None,
    bits: str | None,
    recipe: str | None,
    group_size: int | None,
    dtype: str | None,
) -> "list[Output]":
    from r1mac import settings as settings_module
    from r1mac.convert.recipe import choose_recipe
    from r1mac.prepare.conversion import Output, outputs_of

    widths: list[str | None] = (
        [None] if bits is None else list(dict.fromkeys(width.strip() for width in bits.split(",")))
    )
    recipes = [
        choose_recipe(named=recipe, bits=width, group_size=group_size, dtype=dtype, spec=weights.spec)
        for width in widths
    ]
    names = [width or str(made.nominal_bits or made.name) for width, made in zip(widths, recipes, strict=True)]
    if output is not None or weights.are_the_users_own:
        return [Output(*pair) for pair in zip(recipes, outputs_of(output or Path("out"), names), strict=True)]
    store = settings_module.load().models_dir
    labels = [f"{name}bit" if name.isdecimal() else name for name in names]
    return [Output(made, store / weights.store_name(label)) for made, label in zip(recipes, labels, strict=True)]


def _convert(
    weights: "Weights",
    outputs: "list[Output]",
    manner: "Manner",
    *,
    adapters: tuple[Path, ...],
    keep_source: bool,
    prediction: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from r1mac import settings as settings_module
    from r1mac.prepare.weights import convert_weights
    from r1mac.ui import console
    from r1mac.ui.progress import ProgressDisplay

    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        folders = display.run(
            convert_weights(
                weights,
                outputs,
                settings_module.load(),
                detect.detect(),
                manner,
                adapters=adapters,
                keep_source=keep_source,
                prediction=prediction,
                on_wait=display.wait,
            )
        )
    if not quiet and not as_json:
        for folder in folders:
            console.note(f"converted to {folder}; `r1mac run {shlex.quote(str(folder))}` runs it")


def _verify(folder: Path, *, smoke: bool, as_json: bool, quiet: bool) -> None:
    from r1mac import paths
    from r1mac.prepare.verification import verify_folder
    from r1mac.ui import console
    from r1mac.ui.progress import ProgressDisplay

    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        display.run(verify_folder(paths.expanded(folder), detect.detect(), smoke=smoke))
    if not quiet and not as_json:
        console.note(f"{folder} is as it was converted")


def _forecast(
    weights: "Weights",
    outputs: "list[Output]",
    adapters: tuple[Path, ...],
    memory: int | None,
    *,
    prediction: bool,
    as_json: bool,
) -> None:
    import json
    from dataclasses import asdict

    from r1mac.errors import BadCheckpoint
    from r1mac.prepare.forecast import forecast_local, forecast_model, rows_of
    from r1mac.ui import tables

    recipes = [output.recipe for output in outputs]
    if weights.path is not None:
        forecast = forecast_local(weights.path, recipes, adapters=adapters, prediction=prediction, memory_bytes=memory)
    elif weights.spec is not None:
        forecast = forecast_model(weights.spec, recipes, prediction=prediction, memory_bytes=memory)
    else:
        raise BadCheckpoint(
            f"{weights.repo} is not in the catalog, so its shapes are not known before it is fetched",
            hint="fetch it with `r1mac pull`, and name its folder",
        )
    if as_json:
        click.echo(json.dumps(asdict(forecast), indent=2))
        return
    tables.show_facts(rows_of(forecast))
