"""``r1mac rm``."""

import sys

import click

from r1mac import settings as settings_module
from r1mac.cli import options


@click.command(short_help="Delete MODEL from this disk.")
@click.argument("model")
@options.bits
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(model: str, bits: int | None, yes: bool) -> None:
    """Delete MODEL from this disk.

    MODEL is a name that `r1mac list` shows, or whatever it was run as. Nothing outside the folder for models
    is ever touched.
    """
    from r1mac.prepare.target import find_removable, store_of
    from r1mac.ui import console
    from r1mac.units import format_size

    chosen = settings_module.load(bits=bits)
    name = find_removable(model, chosen)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"Deleting {name} without a terminal to ask at needs --yes.")
        click.confirm(f"Delete {name}?", abort=True, err=True)
    store = store_of(chosen)
    freed_bytes = store.remove(name) + store.sweep_trash()
    console.note(f"deleted {name}, {format_size(freed_bytes)} are free again")
