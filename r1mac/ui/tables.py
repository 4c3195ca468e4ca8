"""Tables for the terminal: plain text with aligned columns, so that a pipe reads what a person does."""

from collections.abc import Sequence

import click


def show_facts(rows: Sequence[tuple[str, str]]) -> None:
    """Write a list of name and value to stdout, the values in one column."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout; a column of numbers (or «-», none) is set flush right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    flush_right = [
        len(column) > 1 and all(cell == "-" or cell[:1].isdigit() for cell in column[1:]) for column in columns
    ]
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, flush_right, strict=True)
        )
        click.echo("  ".join(cells).rstrip())
