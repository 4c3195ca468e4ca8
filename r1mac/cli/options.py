"""Options that several commands have."""

import os

import click

from r1mac.settings import CHOICES
from r1mac.units import parse_seconds


def seconds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """Return a time such as ``90s`` or ``2m``: an option's callback."""
    if text is None:
        return None
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


bits = click.option(
    "--bits",
    type=click.Choice([str(width) for width in CHOICES["bits"]]),
    callback=lambda _ctx, _param, value: int(value) if value is not None else None,
    help="Width of the weights; 16 is unquantised.  [default: 4, or what the model needs]",
)
kv_bits = click.option(
    "--kv-bits",
    type=click.Choice([str(width) for width in CHOICES["kv_bits"]]),
    callback=lambda _ctx, _param, value: int(value) if value is not None else None,
    help="Width of the KV cache; 8 takes little more than half the memory of 16.  [default: 16]",
)
context = click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(min=256),
    metavar="TOKENS",
    help="Longest conversation to plan memory for.  [default: 32768, or what fits]",
)
parallel = click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    metavar="N",
    help="How many replies to write at once, each with the whole context.  [default: 1]",
)
draft = click.option(
    "--draft",
    metavar="lookup|auto|off|MODEL",
    help="Who drafts tokens that MODEL then checks: the text itself, a smaller sibling, or nobody. The answer is the "
    "same.  [default: lookup]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Only the result: no thought, progress or statistics.")


def one_thread_a_product() -> None:
    """Keep numpy's BLAS, which is not loaded yet, from starting threads of its own.

    They wait for each other by spinning, which takes many times as long as one thread where the computer has other
    things to do; r1mac multiplies in threads of its own.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
