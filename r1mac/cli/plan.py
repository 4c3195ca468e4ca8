"""``r1mac plan``."""

from typing import TYPE_CHECKING

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.machine import detect

if TYPE_CHECKING:
    from r1mac.machine.base import HardwareProfile
    from r1mac.prepare.planning import Judgement
    from r1mac.settings import Settings


@click.command(short_help="Show what MODEL needs, whether it fits, and how fast it would be.")
@click.argument("model", required=False)
@click.option("--mac", metavar="TEXT", help='Plan for another Mac, such as "m3 ultra 512gb" or "m4 max 40c 128gb".')
@options.bits
@options.kv_bits
@options.context
@options.parallel
@click.option(
    "--think-tokens",
    "answer_tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Length of the thought and answer to forecast.  [default: what the model writes on hard problems]",
)
@options.as_json
def command(
    model: str | None,
    mac: str | None,
    bits: int | None,
    kv_bits: int | None,
    context_tokens: int | None,
    parallel: int | None,
    answer_tokens: int | None,
    as_json: bool,
) -> int:
    """Show what MODEL needs, whether it fits, and how fast it would be.

    Nothing is fetched or loaded for a model of the catalog. The exit code is 4 where it does not fit. Without
    MODEL the whole family is shown, at every width that fits.
    """
    chosen = settings_module.load(bits=bits, kv_bits=kv_bits, context_tokens=context_tokens, parallel=parallel)
    if mac is None:
        hardware = detect.detect().profile()
    else:
        from r1mac.machine.imagined import parse_mac

        hardware = parse_mac(mac)
    if model is None:
        return _show_family(hardware, chosen, answer_tokens, mac=mac, as_json=as_json)
    return _show_model(model, hardware, chosen, answer_tokens, mac=mac, as_json=as_json)


def _show_model(
    model: str,
    hardware: "HardwareProfile",
    chosen: "Settings",
    answer_tokens: int | None,
    *,
    mac: str | None,
    as_json: bool,
) -> int:
    from r1mac.formats.quality import summary
    from r1mac.plan.report import as_rows, speed_rows
    from r1mac.prepare.planning import judge
    from r1mac.prepare.target import described, quality_of, resolve
    from r1mac.ui import tables

    judgement = judge(resolve(model, chosen), chosen, hardware, mac=mac)
    wish, plan = judgement.wish, judgement.plan
    answer_tokens = answer_tokens or wish.typical_answer_tokens
    if as_json:
        return _show_json(judgement, answer_tokens, chosen)
    rows = [("model", described(wish.target)), *as_rows(wish.arch, plan, hardware, binding=judgement.binding_limit)]
    if (widest := judgement.most_bits) is not None and widest != wish.target.bits:
        context = wish.at_bits(widest).plan(hardware).context_tokens
        rows.append(("widest weights", f"{widest} bits fit with {context} tokens"))
    if judgement.can_run:
        rows += speed_rows(judgement.speed, plan, hardware, answer_tokens=answer_tokens)
    if (quality := quality_of(wish.target, chosen)) is not None:
        rows.append(("quality", summary(quality)))
    tables.show_facts(rows)
    judgement.require()
    return 0


def _show_json(judgement: "Judgement", answer_tokens: int, chosen: "Settings") -> int:
    import json

    from r1mac.errors import DoesNotFit
    from r1mac.formats.quality import as_data as quality_data
    from r1mac.plan.report import as_data
    from r1mac.prepare.target import described, quality_of

    wish, plan = judgement.wish, judgement.plan
    data: dict[str, object] = {
        "model": described(wish.target),
        "bits": wish.target.bits,
        **as_data(wish.arch, plan, judgement.hardware),
        "binding_limit": judgement.binding_limit,
        "most_bits": judgement.most_bits,
        "speed": _speed(judgement, answer_tokens),
        "remedies": [remedy._asdict() for remedy in judgement.remedies()],
    }
    if (quality := quality_of(wish.target, chosen)) is not None:
        data["quality"] = quality_data(quality)
    exit_code = 0
    try:
        judgement.require()
    except DoesNotFit as error:
        data |= {"problem": error.problem, "hint": error.hint}
        exit_code = error.exit_code
    click.echo(json.dumps(data, indent=2))
    return exit_code


def _show_family(
    hardware: "HardwareProfile", chosen: "Settings", answer_tokens: int | None, *, mac: str | None, as_json: bool
) -> int:
    from r1mac.plan.report import as_data, machine_row
    from r1mac.prepare.family import judge_family
    from r1mac.ui import family, tables

    judgements = list(judge_family(hardware, chosen, mac=mac))
    if not as_json:
        tables.show_facts([machine_row(hardware)])
        click.echo()
        tables.show_table(family.HEADER, list(family.as_rows(judgements, answer_tokens=answer_tokens)))
        click.echo()
        for line in family.legend(judgements, answer_tokens=answer_tokens):
            click.echo(line)
        return 0
    import json

    data = [
        {
            "model": judgement.wish.target.title,
            "alias": judgement.wish.name,
            "bits": judgement.wish.target.bits,
            **as_data(judgement.wish.arch, judgement.plan, hardware),
            "speed": _speed(judgement, answer_tokens or judgement.wish.typical_answer_tokens),
        }
        for judgement in judgements
    ]
    click.echo(json.dumps(data, indent=2))
    return 0


def _speed(judgement: "Judgement", answer_tokens: int) -> dict[str, object] | None:
    from r1mac.plan.report import speed_data

    return speed_data(judgement.speed, judgement.plan, answer_tokens=answer_tokens) if judgement.can_run else None
