"""``r1mac convert --list-recipes``: the option, which ends the command once it has shown its table."""

import click


def show_recipes(context: click.Context, _parameter: click.Parameter, model: str | None) -> None:
    """Show the recipes for *model*, or for all where it is empty, and end; do nothing where it was not asked."""
    if model is None or context.resilient_parsing:
        return
    from r1mac.catalog.models import find, nearest_names
    from r1mac.errors import UnknownModel
    from r1mac.machine import detect
    from r1mac.plan.report import machine_row
    from r1mac.prepare.recipes import judge_recipes
    from r1mac.ui import recipes, tables

    spec = find(model) if model else None
    if model and spec is None:
        close = nearest_names(model)
        raise UnknownModel(
            f"there is no model {model!r} in the catalog",
            hint=f"did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else "`r1mac plan` lists them",
        )
    hardware = detect.detect().profile()
    tables.show_facts([machine_row(hardware)])
    click.echo()
    tables.show_table(recipes.HEADER, [recipes.as_row(judged) for judged in judge_recipes(hardware, spec)])
    context.exit()


list_recipes = click.option(
    "--list-recipes",
    is_flag=False,
    flag_value="",
    metavar="[MODEL]",
    is_eager=True,
    expose_value=False,
    callback=show_recipes,
    help="Show the recipes, with size and forecast speed on this computer, and end.",
)
