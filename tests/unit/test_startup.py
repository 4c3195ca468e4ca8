"""Start-up: what a fresh interpreter imports, and the command table."""

import importlib
import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from r1mac.cli import COMMANDS, cli

# Each of these alone costs between 15 and 800 ms of every start.
HEAVY = {
    "mlx",
    "mlx_lm",
    "transformers",
    "huggingface_hub",
    "rich",
    "numpy",
    "tokenizers",
    "prompt_toolkit",
    "jinja2",
    "gguf",
    "psutil",
    "tomlkit",
}
_PROBE = """
import json, sys
sys.argv = ["r1mac", *{arguments!r}]
from r1mac.__main__ import main
try:
    main()
except SystemExit as end:
    code = end.code
modules = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps({{"code": code, "modules": modules}}), file=sys.stderr)
"""


def started(*arguments: str) -> tuple[int, set[str]]:
    """Run r1mac in a fresh interpreter; return its exit code and the packages that it imported."""
    probe = _PROBE.format(arguments=list(arguments))
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        timeout=60,
    )
    answer = json.loads(done.stderr.splitlines()[-1])
    return answer["code"], set(answer["modules"])


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (["--help"], {0}),
        (["--version"], {0}),
        (["plan", "--help"], {0}),
        (["run", "--help"], {0}),
        (["tune", "--help"], {0}),
        (["tune", "70b"], {0, 4, 8}),  # 8 where the machine of the test is no Mac
        (["plan", "70b"], {0, 4}),  # 4 where the machine of the test is too small for it
        (["plan", "1.5b", "--json"], {0, 4}),
        (["list"], {0}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_light_commands_import_nothing_heavy(arguments, codes):
    """Help, plans and lists start at once: none of the heavy packages is imported for them."""
    code, modules = started(*arguments)

    assert code in codes
    assert "click" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name):
    """The one-line help that the group keeps is the command's own."""
    module, text = COMMANDS[name]
    command = importlib.import_module(module).command

    assert command.short_help == text
    assert command.help.splitlines()[0] == text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    """``r1mac COMMAND --help`` works for every command of the table, and is its own."""
    result = CliRunner().invoke(cli, [name, "--help"])

    assert result.exit_code == 0
    assert f"Usage: cli {name}" in result.output


def test_help_lists_every_command_with_its_line():
    """``r1mac --help`` has each command beside its text, in the table's order."""
    result = CliRunner().invoke(cli, ["--help"])
    listed = result.output[result.output.index("Commands:") :]

    assert result.exit_code == 0
    assert [line.split()[0] for line in listed.splitlines()[1:] if line.startswith("  ") and line[2] != " "] == list(
        COMMANDS
    )
    assert all(text in " ".join(listed.split()) for _, text in COMMANDS.values())


@pytest.mark.parametrize(
    ("slip", "command"), [("rnu", "run"), ("plna", "plan"), ("remove-rm", None), ("lst", "list"), ("nosuch", None)]
)
def test_a_slip_is_met_with_the_nearest_command(slip, command):
    """An unknown command ends with 2, names itself, and suggests the nearest or where the list is."""
    result = CliRunner().invoke(cli, [slip])

    assert result.exit_code == 2
    assert f"no command '{slip}'" in result.stderr
    assert (f"Did you mean '{command}'?" if command else "`r1mac --help` lists the commands") in result.stderr


def test_a_slip_ends_with_2_in_a_real_process():
    """The exit code of a wrong command line reaches the shell, and stdout stays empty."""
    done = subprocess.run(
        [sys.executable, "-m", "r1mac", "nosuch"], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert "There is no command 'nosuch'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_group_imports_no_command_to_list_them():
    """Only a command that is asked for is imported."""
    context = click.Context(cli)

    assert cli.list_commands(context) == list(COMMANDS)
    assert cli.get_command(context, "nosuch") is None
