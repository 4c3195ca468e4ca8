"""``r1mac doctor``."""

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.errors import BadSettings, ChecksFailed
from r1mac.machine import detect


@click.command(short_help="Look for what keeps r1mac from running well on this computer.")
@options.as_json
def command(as_json: bool) -> int:
    """Look for what keeps r1mac from running well on this computer.

    Each line says what was found; where it is not well, why it matters and what to do. Nothing is changed.
    The exit code is 12 where something fails; a warning is none.
    """
    from r1mac.doctor.checks import CHECKS
    from r1mac.doctor.examination import Examination, examine
    from r1mac.ui import doctor

    settings_error = None
    try:
        settings = settings_module.load()
    except BadSettings as error:
        settings, settings_error = settings_module.Settings(), error
    machine = detect.detect()
    machine.hush()  # the report says it
    report = examine(Examination(machine, settings, settings_error=settings_error), CHECKS)
    failed = report.named("fail")
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps([asdict(result) for result in report.results], indent=2, ensure_ascii=False))
        return ChecksFailed.exit_code if failed else 0
    doctor.show(report)
    if failed:
        raise ChecksFailed(
            f"{len(failed)} of {len(report.results)} checks failed: {', '.join(failed)}",
            hint="each has its fix above",
        )
    return 0
