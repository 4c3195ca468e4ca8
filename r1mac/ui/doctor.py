"""An examination's report for a person: a line for what is well, three for what is not."""

import click

from r1mac.doctor.examination import CheckResult, Report
from r1mac.ui import console

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def show(report: Report) -> None:
    """Write the report to stdout."""
    width = max((len(result.name) for result in report.results), default=0)
    for result in report.results:
        _show_result(result, width)


def _show_result(result: CheckResult, width: int) -> None:
    status = click.style(f"{result.status:<4}", fg=_COLORS[result.status], bold=result.status == "fail")
    found = f"{result.subject}: {result.found}" if result.subject else result.found
    click.echo(f"{status}  {result.name:<{width}}  {_printable(found)}", color=console.color())
    for label, text in (("why", result.why), ("fix", result.fix)):
        if text is not None:
            click.echo(f"      {label}  {_printable(text)}")


def _printable(text: str) -> str:
    """Return *text* without what would steer a terminal: names come from disks and from other computers."""
    return "".join(char if char.isprintable() else "�" for char in text)
