"""``r1mac eval``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.machine import detect

if TYPE_CHECKING:
    from collections.abc import Generator

    from r1mac.formats.quality import Quality
    from r1mac.prepare.evaluation import Weighed
    from r1mac.prepare.files import PrepareEvent
    from r1mac.prepare.problems import Problem
    from r1mac.settings import Settings


@click.command(short_help="Measure how good MODEL is: on a text, beside its original, and at thinking.")
@click.argument("model")
@click.option(
    "--against",
    metavar="REF",
    help="The model to compare with, such as the original weights: a folder, a file, or a stored model.",
)
@click.option(
    "--text",
    "text_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text of your own, UTF-8.  [default: reasoning, prose, code, many languages]",
)
@click.option(
    "--tokens", type=click.IntRange(min=16), default=2048, show_default=True, metavar="N", help="How many to read."
)
@click.option("--no-text", is_flag=True, help="Put problems alone.")
@click.option("--no-thoughts", is_flag=True, help="Put no problems: do not load the model.")
@click.option(
    "--problems",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Problems of your own, one a line: {"prompt": "What is 2 + 2?", "answer": 4}.  [default: twelve]',
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N", help="Replies to each problem."
)
@click.option(
    "--max-tokens",
    "most_tokens",
    type=click.IntRange(min=64),
    default=4096,
    show_default=True,
    metavar="N",
    help="Most tokens of a reply, thought included; a thought that goes on for so long counts as not ended.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw MODEL and the models in the folder that it is in, divergence over gigabytes, as SVG; with --against, or "
    "from what was kept.",
)
@options.bits
@options.as_json
@options.quiet
def command(
    model: str,
    against: str | None,
    text_file: Path | None,
    tokens: int,
    no_text: bool,
    no_thoughts: bool,
    problems: Path | None,
    seeds: int,
    most_tokens: int,
    plot: Path | None,
    bits: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how good MODEL is: on a text, beside its original, and at thinking.

    MODEL is a folder, a file of weights, or a model of the store. Its perplexity on a text and, with --against, how
    far its distributions are from another model's are measured with both streamed through: neither has to fit
    memory. If MODEL does, problems are put to it at fixed seeds: are the answers right, do thoughts end, do they go
    in circles? What is found is kept beside MODEL in quality.json, and `r1mac show` shows it.
    """
    if no_text and no_thoughts and plot is None:
        raise click.UsageError("--no-text and --no-thoughts leave nothing to measure.")
    if no_text and (against or text_file):
        raise click.UsageError("--against and --text are about the text, which --no-text leaves out.")
    if no_thoughts and problems:
        raise click.UsageError("--problems names what --no-thoughts leaves out.")
    options.one_thread_a_product()
    from r1mac import paths
    from r1mac.prepare.evaluation import find_weighed

    chosen = settings_module.load(bits=bits)
    weighed = find_weighed(model, chosen)
    asked = [] if no_thoughts else _problems(problems)
    reference = find_weighed(against, settings_module.load()) if against else None
    text = None if text_file is None else paths.expanded(text_file)
    measuring = _Measuring(weighed, quiet=quiet, as_json=as_json)
    try:
        if not no_text:
            measuring.read(reference, text, tokens)
        if asked:
            measuring.put(asked, chosen, seeds=seeds, most_tokens=most_tokens)
    except KeyboardInterrupt:
        measuring.say_what_is_kept()
        raise
    if plot is not None:
        measuring.draw(paths.expanded(plot))
    measuring.show()


class _Measuring:
    """Measures, and keeps what was measured part by part."""

    def __init__(self, model: "Weighed", *, quiet: bool, as_json: bool) -> None:
        self._model, self._quiet, self._as_json = model, quiet or as_json, as_json
        self._machine = detect.detect()
        self._known: Quality | None = None

    def read(self, reference: "Weighed | None", text_file: Path | None, tokens: int) -> None:
        """Let the model read a text, beside *reference*."""
        from r1mac.prepare.evaluation import evaluate_text

        self._run(evaluate_text(self._model, reference, self._machine, text_file=text_file, tokens=tokens))

    def put(self, problems: "list[Problem]", chosen: "Settings", *, seeds: int, most_tokens: int) -> None:
        """Put *problems* to the model."""
        from r1mac.prepare.evaluation import evaluate_thoughts

        self._run(evaluate_thoughts(self._model, self._machine, chosen, problems, seeds=seeds, most_tokens=most_tokens))

    def say_what_is_kept(self) -> None:
        """Say what an interruption leaves."""
        from r1mac.ui import console

        if not self._quiet:
            kept = "what the text showed is kept" if self._known else "nothing was written"
            console.note(f"\nstopped; {kept}, and nothing is half written")

    def draw(self, file: Path) -> None:
        """Write the model and those beside it as an image.

        Raises:
            BadCheckpoint: it was not compared with another.
            NotWritable, DiskFull: the file cannot be written.
        """
        from r1mac.durable import write_whole
        from r1mac.errors import BadCheckpoint, writing_to
        from r1mac.formats.quality import load_quality
        from r1mac.prepare.standings import standings_beside
        from r1mac.ui.quality_plot import draw

        folder = self._model.path
        self._known = self._known or (load_quality(folder) if folder.is_dir() else None)
        measured = self._known.divergence if self._known else None
        standings = standings_beside(folder, measured) if measured else []
        if measured is None or not standings:
            raise BadCheckpoint(
                f"nothing can be drawn: how far {self._model.title} is from its original is not known",
                hint="give the original with --against REF",
            )
        with writing_to(file):
            write_whole(file, draw(standings, reference=measured.reference))

    def show(self) -> None:
        """Write all that is known of the model."""
        import json

        from r1mac.formats.quality import as_data, as_rows
        from r1mac.ui import tables

        if self._as_json:
            data = {"model": self._model.title, **as_data(self._known)} if self._known else {"model": self._model.title}
            click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        else:
            tables.show_facts([("model", self._model.title), *(as_rows(self._known) if self._known else ())])

    def _run(self, steps: "Generator[PrepareEvent, None, Quality]") -> None:
        from r1mac.formats.quality import Quality
        from r1mac.prepare.evaluation import keep
        from r1mac.ui.progress import ProgressDisplay

        with ProgressDisplay(quiet=self._quiet, as_json=False) as display:
            found = display.run(steps)
            if found != Quality():
                self._known = display.run(keep(self._model, found))


def _problems(file: Path | None) -> "list[Problem]":
    from r1mac import paths
    from r1mac.prepare.problems import SHIPPED, parse_problems
    from r1mac.prepare.tokens import read_text

    path = SHIPPED if file is None else paths.expanded(file)
    return parse_problems(read_text(path, "the problems"), path.name)
