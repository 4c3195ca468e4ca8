"""``r1mac calibrate``."""

import shlex
from pathlib import Path

import click

from r1mac.cli import options
from r1mac.machine import detect


@click.command(short_help="Measure what MODEL's matrices are given, for `r1mac convert --quality`.")
@click.argument("model")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The folder to make.  [default: MODEL-statistics, here]"
)
@click.option(
    "--calibration",
    "text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text of your own, UTF-8, some 20,000 words.  [default: reasoning, code, prose, many languages]",
)
@options.as_json
@options.quiet
def command(model: str, output: Path | None, text: Path | None, as_json: bool, quiet: bool) -> None:
    """Measure what MODEL's matrices are given, for `r1mac convert --quality`.

    MODEL is a folder of safetensors or a GGUF file: the weights that are going to be converted. A text goes through
    them block by block, and back goes what the answers hang on; memory holds one block at a time, the disk what went
    in between. A run that was stopped goes on when the same command is given again.
    """
    from r1mac import paths
    from r1mac.errors import BadCheckpoint
    from r1mac.prepare.calibrating import calibrate_path
    from r1mac.prepare.weights import find_weights
    from r1mac.ui import console
    from r1mac.ui.progress import ProgressDisplay

    weights = find_weights(model)
    if weights.path is None:
        raise BadCheckpoint(
            f"the weights of {weights.title} are not on this disk",
            hint=f"fetch them with `hf download {weights.repo} --local-dir FOLDER`, and name that folder",
        )
    folder = paths.expanded(output or Path(f"{weights.path.stem}-statistics"))
    text_file = None if text is None else paths.expanded(text)
    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        display.run(calibrate_path(weights.path, folder, detect.detect(), text_file=text_file))
    if not quiet and not as_json:
        source = shlex.quote(model)
        console.note(f"measured; `r1mac convert {source} --quality --statistics {shlex.quote(str(folder))}` uses it")
