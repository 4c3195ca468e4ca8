"""Options that several commands have."""

import click

from r1mac.settings import CHOICES

bits = click.option(
    "--bits",
    type=click.Choice([str(width) for width in CHOICES["bits"]]),
    callback=lambda _ctx, _param, value: int(value) if value is not None else None,
    help="Width of the weights; 16 is unquantised.  [default: 4, or what the model needs]",
)
context = click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(min=256),
    metavar="TOKENS",
    help="Longest conversation to plan memory for.  [default: 32768, or what fits]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Only the result: no thought, progress or statistics.")
