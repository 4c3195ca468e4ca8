"""``r1mac pull``."""

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.machine import detect


@click.command(short_help="Fetch MODEL (and convert it, where no ready one exists).")
@click.argument("model")
@options.bits
@options.as_json
@options.quiet
def command(model: str, bits: int | None, as_json: bool, quiet: bool) -> None:
    """Fetch MODEL (and convert it, where no ready one exists).

    A ready MLX model of the wanted width is taken where the catalog has one, else the original weights are
    fetched and converted. A fetch that was stopped goes on where it was; a model that is already here is left
    alone. Whether it fits this machine's memory is not asked: `r1mac plan` tells.
    """
    from r1mac.prepare.files import ensure_files
    from r1mac.prepare.target import described, resolve
    from r1mac.ui import console
    from r1mac.ui.progress import ProgressDisplay

    machine = detect.detect()
    chosen = settings_module.load(bits=bits)
    target = resolve(model, chosen)
    with ProgressDisplay(quiet=quiet, as_json=as_json) as display:
        folder = display.run(ensure_files(target, chosen, machine, on_wait=display.wait))
    if not quiet and not as_json:
        console.note(f"{described(target)} is in {folder}")
