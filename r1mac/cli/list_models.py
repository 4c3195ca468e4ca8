"""``r1mac list``."""

import json

import click

from r1mac import settings as settings_module
from r1mac.cli import options


@click.command(short_help="List the models on this disk.")
@options.as_json
def command(as_json: bool) -> None:
    """List the models on this disk.

    Unfinished downloads and conversions are named too: the command that began one goes on with it, and `r1mac rm`
    deletes it.
    """
    from r1mac.hub.store import Store
    from r1mac.ui import console, tables
    from r1mac.units import format_size

    store = Store(settings_module.load().models_dir)
    models = store.list()
    if as_json:
        rows = [
            {
                "name": model.name,
                "path": str(model.path),
                "size_bytes": model.size_bytes,
                "bits": model.manifest.bits,
                "source": model.manifest.source,
                "revision": model.manifest.revision,
                "created": model.manifest.created,
            }
            for model in models
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if models:
        tables.show_table(
            ("NAME", "BITS", "SIZE", "MADE", "SOURCE"),
            [
                (
                    model.name,
                    str(model.manifest.bits or "-"),
                    format_size(model.size_bytes),
                    model.manifest.created[:10],
                    model.manifest.source,
                )
                for model in models
            ],
        )
    else:
        console.note(f"there are no models in {store.root} yet; `r1mac run tiny` makes one at once")
    for leftover in store.leftovers():
        if leftover.kind == "partial":
            console.note(f"{leftover.name}: unfinished, {format_size(leftover.size_bytes)}")
