"""``r1mac show``."""

import json

import click

from r1mac import settings as settings_module
from r1mac.cli import options


@click.command(short_help="Show the facts of MODEL: shape, sizes, licence.")
@click.argument("model")
@options.bits
@options.as_json
def command(model: str, bits: int | None, as_json: bool) -> None:
    """Show the facts of MODEL: shape, sizes, licence.

    For a model on this disk the facts are read from its files; for another one of the catalog they are
    computed from its shape.
    """
    from r1mac.prepare.facts import facts_of
    from r1mac.prepare.target import resolve
    from r1mac.ui import tables
    from r1mac.ui.facts import as_rows

    chosen = settings_module.load(bits=bits)
    facts = facts_of(resolve(model, chosen), chosen)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        tables.show_facts(as_rows(facts))
