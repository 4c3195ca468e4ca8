"""``r1mac plan``."""

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.errors import DoesNotFit
from r1mac.machine import detect


@click.command(short_help="Show what MODEL needs and whether it fits this machine.")
@click.argument("model")
@options.bits
@options.context
@options.as_json
def command(model: str, bits: int | None, context_tokens: int | None, as_json: bool) -> int:
    """Show what MODEL needs and whether it fits this machine.

    Nothing is fetched or loaded for a model of the catalog. The exit code is 4 where it does not fit.
    """
    from r1mac.plan.report import as_data, as_rows
    from r1mac.prepare.planning import plan_target, require
    from r1mac.prepare.target import described, resolve
    from r1mac.ui import tables

    hardware = detect.detect().profile()
    chosen = settings_module.load(bits=bits, context_tokens=context_tokens)
    target = resolve(model, chosen)
    arch, plan = plan_target(target, chosen, hardware)
    if not as_json:
        tables.show_facts([("model", described(target)), *as_rows(arch, plan, hardware)])
        require(target, arch, plan, hardware)
        return 0
    import json

    data: dict[str, object] = {"model": described(target), **as_data(arch, plan, hardware)}
    exit_code = 0
    try:
        require(target, arch, plan, hardware)
    except DoesNotFit as error:
        data |= {"problem": error.problem, "hint": error.hint}
        exit_code = error.exit_code
    click.echo(json.dumps(data, indent=2))
    return exit_code
