"""``r1mac service``."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from r1mac.cli import options
from r1mac.errors import UnknownModel, UnsupportedMachine
from r1mac.machine import detect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1mac.machine.base import Machine
    from r1mac.machine.launch_agent import LaunchAgent, Service

# To let go of a loaded model, once the replies at work have ended.
_CLOSING_SECONDS = 60


@click.group(short_help="Serve at each login, through macOS's launchd.", no_args_is_help=True)
def command() -> None:
    """Serve at each login, through macOS's launchd.

    The service is yours alone and needs no administrator. It is not started again by itself when it ends.
    """


@command.command(
    "install",
    short_help="Start `r1mac serve` now and at each login.",
    context_settings={"ignore_unknown_options": True},
    options_metavar="",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL] [SERVE OPTIONS]...")
def install(arguments: tuple[str, ...]) -> None:
    """Start `r1mac serve` now and at each login.

    MODEL and options are those of `r1mac serve`; MODEL must be on this disk. Variables R1MAC_* and the API key are
    kept in the service's file, which nobody else can read. A service that was installed before is replaced.

    \b
    r1mac service install 70b --port 8080
    """  # noqa: D301 - click wants the character itself
    from r1mac.machine.launch_agent import words_of
    from r1mac.ui import console

    service = _service(arguments)
    agent = _agent(detect.detect(), service)
    changed = agent.install(service)
    said = "the service runs now and will at each login" if changed else "nothing changed, it runs already"
    console.note(f"{said}: {words_of(service.argv)}\nit writes to {agent.log}; `r1mac service remove` takes it away")


@command.command("remove", short_help="Stop the service and take it away.")
def remove() -> None:
    """Stop the service and take it away.

    Replies at work may end first. Models and the log stay.
    """
    from r1mac.ui import console

    there = detect.detect().launch_agent().remove()
    console.note("the service has ended and is taken away" if there else "no service is installed")


@command.command("status", short_help="Show whether the service is installed, and whether it runs.")
@options.as_json
def status(as_json: bool) -> None:
    """Show whether the service is installed, and whether it runs."""
    from r1mac.machine.launch_agent import words_of
    from r1mac.ui import tables

    agent = detect.detect().launch_agent()
    state = agent.state()
    if as_json:
        _write_json(
            {
                "installed": state.argv is not None,
                "loaded": state.loaded,
                "pid": state.pid,
                "last_exit_code": state.last_exit_code,
                "command": None if state.argv is None else list(state.argv),
                "file": str(agent.file),
                "log": str(agent.log),
            }
        )
        return
    ended = "" if state.last_exit_code is None else f"; the last time it ended with {state.last_exit_code}"
    if state.pid is not None:
        rows = [("service", f"runs, as process {state.pid}")]
    elif state.loaded:
        rows = [("service", f"does not run{ended}")]
    elif state.argv is not None:
        rows = [("service", "installed; runs from the next login on")]
    else:
        rows = [("service", "not installed")]
    if state.argv is not None:
        rows += [("command", words_of(state.argv)), ("file", str(agent.file)), ("log", str(agent.log))]
    tables.show_facts(rows)


def _service(arguments: tuple[str, ...]) -> "Service":
    """Return what launchd is to run for the *arguments* of ``r1mac serve``.

    Raises:
        click.UsageError: serve does not know them.
        UnknownModel: the model is not on this disk.
    """
    from r1mac.cli import serve
    from r1mac.machine.launch_agent import Service

    said = serve.command.make_context("r1mac serve", list(arguments)).params
    serve.require_key(said["host"], said["api_key"])
    words = _without_key(arguments, said["api_key"])
    if said["model"] is not None:
        words[words.index(said["model"])] = _stored(said["model"], said["bits"])
    if said["draft"] is not None:
        words = [_absolute(word) if word == said["draft"] else word for word in words]
    environment = {name: value for name, value in os.environ.items() if name.startswith("R1MAC_")}
    if said["api_key"]:
        # Other people of this computer see a process's arguments, and not its variables.
        environment["R1MAC_API_KEY"] = said["api_key"]
    return Service(
        argv=(sys.executable, "-m", "r1mac", "serve", *words),
        environment=environment,
        exit_seconds=round(said["patience_seconds"] or 0) + _CLOSING_SECONDS,
    )


def _absolute(word: str) -> str:
    """Return a path that means the same wherever it is said; another word as it is."""
    from pathlib import Path

    from r1mac.paths import expanded

    return str(expanded(Path(word)).resolve()) if word.startswith((".", "~")) else word


def _without_key(arguments: "Sequence[str]", key: str | None) -> list[str]:
    words = [word for word in arguments if word != f"--api-key={key}"]
    if "--api-key" in words:
        at = words.index("--api-key")
        del words[at : at + 2]
    return words


def _stored(model: str, bits: int | None) -> str:
    """Return the name of a model on this disk that means the same wherever it is said.

    Raises:
        UnknownModel: it is not here; a login is no moment to fetch it.
    """
    from r1mac import settings
    from r1mac.prepare.target import described, find_stored, resolve

    chosen = settings.load(bits=bits)
    target = resolve(model, chosen)
    if target.folder is not None:
        return str(target.folder)
    if find_stored(target, chosen) is None:
        width = f" --bits {bits}" if bits else ""
        raise UnknownModel(f"{described(target)} is not on this disk", hint=f"fetch it: `r1mac pull {model}{width}`")
    return model


def _agent(machine: "Machine", service: "Service") -> "LaunchAgent":
    """Return this Mac's launchd.

    Raises:
        UnsupportedMachine: this is no Mac; the hint is the same service for systemd.
    """
    from r1mac.machine.launch_agent import words_of

    try:
        return machine.launch_agent()
    except UnsupportedMachine as error:
        hint = "\n".join(
            (
                "with systemd, ~/.config/systemd/user/r1mac.service does the same:",
                "",
                "[Service]",
                *(f'Environment="{name}={value}"' for name, value in service.environment.items() if "KEY" not in name),
                f"ExecStart={words_of(service.argv)}",
                f"TimeoutStopSec={service.exit_seconds}",
                "[Install]",
                "WantedBy=default.target",
                "",
                "then run `systemctl --user enable --now r1mac`",
            )
        )
        raise UnsupportedMachine(error.problem, hint=hint) from None


def _write_json(data: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(data, ensure_ascii=False, indent=2))
