"""Sentences for the person, on stderr. stdout belongs to the result."""

import os

import click

from r1mac.errors import R1MacError


def note(text: str) -> None:
    """Say something that the person should read but that is not the result."""
    dim(text + "\n")


def dim(text: str) -> None:
    """Write text to stderr, dim where the terminal can."""
    click.secho(text, nl=False, dim=True, err=True, color=color())


def color() -> bool | None:
    """Return whether to colour: never with NO_COLOR (no-color.org), else where the output is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def error(problem: str, hint: str | None) -> None:
    """Say what went wrong, and what would help."""
    click.echo(click.style("error: ", fg="red", bold=True) + problem, err=True, color=color())
    for line in (hint or "").splitlines():
        click.echo(f"  {line}", err=True)


def error_object(failure: R1MacError) -> None:
    """Write an error to stdout as the last JSON object of a run."""
    import json

    click.echo(json.dumps({"event": "error", **error_fields(failure)}, ensure_ascii=False))


def error_fields(failure: R1MacError) -> dict[str, object]:
    """Return an error as JSON types."""
    return {"problem": failure.problem, "hint": failure.hint, "exit_code": failure.exit_code}


def plain(event: object) -> dict[str, object]:
    """Return an event as a JSON object: its kind, then its fields."""
    from dataclasses import asdict

    kind = _snake_case(type(event).__name__)
    return {"event": kind, **asdict(event)}  # type: ignore[call-overload]


def _snake_case(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
