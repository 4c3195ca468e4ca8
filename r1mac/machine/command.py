"""Running a command of macOS: its absolute path, nothing inherited, a limit in time."""

from collections.abc import Callable
from dataclasses import dataclass

COMMAND_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What a command left: its exit status and its texts."""

    returncode: int
    stdout: str
    stderr: str = ""


Run = Callable[[tuple[str, ...]], CommandResult]


def run_command(argv: tuple[str, ...]) -> CommandResult:
    """Run *argv*, whose first word is an absolute path, for at most COMMAND_SECONDS.

    A command that is missing or hangs is a result too (127 or 124): each fact is optional.
    """
    import subprocess

    # Nothing is inherited: SYSTEM_VERSION_COMPAT=1 would make macOS 26 call itself 16, and a locale
    # may put a decimal comma into numbers.
    environ = {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            env=environ,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        return CommandResult(returncode=124, stdout="", stderr=str(error))
    except OSError as error:
        return CommandResult(returncode=127, stdout="", stderr=str(error))
    return CommandResult(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)
