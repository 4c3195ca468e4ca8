"""The command line: a group whose commands are imported when they are run, and errors made exit codes."""

import importlib
import os
import sys
from collections.abc import Sequence

import click

from r1mac import __version__
from r1mac.errors import NotWritable, R1MacError

# Name to module and one-line help. The help is repeated here so that listing the commands imports none of
# them; a test keeps both texts equal.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("r1mac.cli.run", "Run MODEL: answer PROMPT, or chat."),
    "serve": ("r1mac.cli.serve", "Serve MODEL to other programs, on this computer or another."),
    "service": ("r1mac.cli.service", "Serve at each login, through macOS's launchd."),
    "plan": ("r1mac.cli.plan", "Show what MODEL needs, whether it fits, and how fast it would be."),
    "tune": ("r1mac.cli.tune", "Show or set how much memory the GPU may use for MODEL."),
    "doctor": ("r1mac.cli.doctor", "Look for what keeps r1mac from running well on this computer."),
    "pull": ("r1mac.cli.pull", "Fetch MODEL (and convert it, where no ready one exists)."),
    "list": ("r1mac.cli.list_models", "List the models on this disk."),
    "show": ("r1mac.cli.show", "Show the facts of MODEL: shape, sizes, licence."),
    "rm": ("r1mac.cli.rm", "Delete MODEL from this disk."),
    "convert": ("r1mac.cli.convert", "Convert SOURCE (a folder, a file, or a model on the Hub) to an MLX model."),
    "calibrate": ("r1mac.cli.calibrate", "Measure what MODEL's matrices are given, for `r1mac convert --quality`."),
    "eval": ("r1mac.cli.eval", "Measure how good MODEL is: on a text, beside its original, and at thinking."),
    "push": ("r1mac.cli.push", "Upload MODEL to the Hub repository REPO."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order in which they are met."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command's module and return its command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command where there is none of that name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " `r1mac --help` lists the commands."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="r1mac")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr; show the traceback of an error.")
def cli(verbose: bool) -> None:
    """Run DeepSeek-R1 on this machine.

    \b
    r1mac run 70b "Why is the sky blue?"
    r1mac plan 32b
    """  # noqa: D301 - click wants the character itself
    if verbose:
        from r1mac import log

        log.speak_up()


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    This is the one place where errors become text and exit codes (``r1mac.errors`` lists them).
    """
    _open_missing_streams()
    arguments = sys.argv[1:] if args is None else list(args)
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:  # noqa: PLR0911 - one line a kind of ending
    from r1mac.ui import console

    verbose = any(argument in {"-v", "--verbose"} for argument in arguments)
    try:
        result = cli.main(args=arguments, prog_name="r1mac", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        return 130
    except SystemExit:
        # click's answer to a reader (head, less) that has left, which is no error.
        return 0
    except R1MacError as error:
        if verbose:
            _show_traceback(error)
        if "--json" in arguments:
            console.error_object(error)
        console.error(error.problem, error.hint)
        return error.exit_code
    except PermissionError as error:
        console.error(f"cannot use {error.filename}: {error.strerror}", "make it readable and writable for yourself")
        return NotWritable.exit_code
    except Exception as error:  # noqa: BLE001 - the last resort of the program
        _show_traceback(error)
        console.error(
            f"this is a bug in r1mac {__version__}: {type(error).__name__}: {error}",
            "please report it with the text above and the command you ran",
        )
        return 1
    return result if isinstance(result, int) else 0


def _open_missing_streams() -> None:
    """Put /dev/null where a standard stream is closed: the next file opened would take its number."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _show_traceback(error: BaseException) -> None:
    import traceback

    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
