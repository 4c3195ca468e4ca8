"""A program that macOS starts for one person at each login: a LaunchAgent, written, started, stopped and taken away.

``man launchd.plist`` and ``man launchctl`` describe both. Nothing here needs root.
"""

import plistlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mac import durable
from r1mac.errors import NotWritable, R1MacError, UnsupportedMachine
from r1mac.machine.command import CommandResult, Run

LABEL = "dev.r1mac.serve"
_LAUNCHCTL = "/bin/launchctl"
_LOOK_SECONDS = 0.5
_NOT_LOADED = 113  # launchctl print of a service that launchd does not know
_NO_SESSION = 125  # «Domain does not support specified action»: nobody is logged in on the screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What launchd is to run.

    Attributes:
        argv: the program and its arguments; the first is an absolute path.
        environment: variables, which launchd does not take from a shell.
        exit_seconds: how long it may take to end before launchd kills it.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    exit_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """What there is of the service.

    Attributes:
        argv: what is installed; None if nothing is.
        loaded: whether launchd knows it.
        pid: its process, while it runs.
        last_exit_code: how it ended the last time.
    """

    argv: tuple[str, ...] | None
    loaded: bool
    pid: int | None = None
    last_exit_code: int | None = None


class LaunchAgent:
    """The service of one person on this Mac.

    Args:
        run: runs a command.
        home: the person's folder.
        user_id: the person.
        pause: waits for so many seconds.
    """

    def __init__(self, *, run: Run, home: Path, user_id: int, pause: Callable[[float], None] = time.sleep) -> None:
        self._run, self._pause = run, pause
        self._domain = f"gui/{user_id}"
        self._target = f"{self._domain}/{LABEL}"
        self._is_root = user_id == 0
        self.file = home / "Library/LaunchAgents" / f"{LABEL}.plist"
        self.log = home / "Library/Logs/r1mac/serve.log"

    def state(self) -> ServiceState:
        """Return what is installed and whether it runs."""
        argv, shown = self._installed_argv(), self._print()
        if shown.returncode != 0:
            return ServiceState(argv=argv, loaded=False)
        return ServiceState(
            argv=argv,
            loaded=True,
            pid=_number(r"^\s*pid = ([0-9]+)$", shown.stdout),
            last_exit_code=_number(r"^\s*last exit code = (-?[0-9]+)", shown.stdout),
        )

    def install(self, service: Service) -> bool:
        """Start *service* now and at each login, in place of an earlier one; return False if it runs already.

        Raises:
            NotWritable: the plist cannot be written.
            UnsupportedMachine: launchd does not take it, and nothing is installed; or an earlier one does not end.
        """
        if self._is_root:
            raise UnsupportedMachine("a service belongs to a person, and this is root", hint="run it without sudo")
        text = plist_text(service, self.log)
        earlier = self.state()
        if earlier.pid is not None and self._text() == text:
            return False
        if earlier.loaded:
            self._stop(self._exit_seconds())
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            # It may hold the server's key.
            durable.write_whole(self.file, text, mode=0o600)
        except OSError as error:
            raise _not_writable(self.file, error) from error
        started = self._run((_LAUNCHCTL, "bootstrap", self._domain, str(self.file)))
        if started.returncode != 0 and not self.state().loaded:
            self._remove_file()
            raise _refused(started)
        return True

    def remove(self) -> bool:
        """Stop the service in order and take it away; return False if there was none.

        Raises:
            NotWritable: the plist cannot be deleted.
            UnsupportedMachine: it does not end.
        """
        there = self.file.exists()
        if self.state().loaded:
            there = True
            self._stop(self._exit_seconds())
        self._remove_file()
        return there

    def _stop(self, exit_seconds: int) -> None:
        """Have launchd end the service; what it has in memory takes a while to be given back."""
        # It may answer before the process has ended, or only after longer than a command may take.
        self._run((_LAUNCHCTL, "bootout", self._target))
        for _ in range(int((exit_seconds + 10) / _LOOK_SECONDS)):
            if self._print().returncode == _NOT_LOADED:
                return
            self._pause(_LOOK_SECONDS)
        raise UnsupportedMachine(
            f"launchd did not end {LABEL} within {exit_seconds + 10} seconds",
            hint=f"look at {self.log}, and try again",
        )

    def _print(self) -> CommandResult:
        return self._run((_LAUNCHCTL, "print", self._target))

    def _remove_file(self) -> None:
        try:
            durable.remove(self.file)
        except OSError as error:
            raise _not_writable(self.file, error) from error

    def _text(self) -> str | None:
        try:
            return self.file.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def _plist(self) -> dict[str, object]:
        try:
            plist = plistlib.loads((self._text() or "").encode())
        except (ValueError, plistlib.InvalidFileException):
            return {}
        return plist if isinstance(plist, dict) else {}

    def _installed_argv(self) -> tuple[str, ...] | None:
        if not self.file.exists():
            return None
        argv = self._plist().get("ProgramArguments")
        return tuple(str(word) for word in argv) if isinstance(argv, list) else ()

    def _exit_seconds(self) -> int:
        seconds = self._plist().get("ExitTimeOut")
        return seconds if isinstance(seconds, int) and seconds > 0 else 20  # launchd's own


def plist_text(service: Service, log: Path) -> str:
    """Return the property list of *service*; what it says goes to *log*."""
    plist: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list[str](service.argv),
        "RunAtLoad": True,
        # A server that ends because memory is short must not be started again and again: each end of a large model
        # by force may leave memory that only a restart of the Mac gives back.
        "KeepAlive": False,
        # After SIGTERM, before SIGKILL.
        "ExitTimeOut": service.exit_seconds,
        # Without it, launchd throttles the processor and the disk.
        "ProcessType": "Interactive",
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    if service.environment:
        plist["EnvironmentVariables"] = dict(service.environment)
    return plistlib.dumps(plist).decode()


def words_of(argv: Sequence[str]) -> str:
    """Return a command line as a person would type it."""
    import shlex

    return shlex.join(argv)


def _number(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text, re.MULTILINE)
    return int(match[1]) if match else None


def _refused(result: CommandResult) -> UnsupportedMachine:
    said = (result.stderr.strip().splitlines() or [f"it ended with {result.returncode}"])[0]
    if result.returncode == _NO_SESSION:
        hint = "log in on this Mac's own screen (or through Screen Sharing), and install the service from there"
    else:
        hint = (
            "if r1mac is switched off in System Settings > General > Login Items & Extensions, allow it there; "
            "then try again"
        )
    return UnsupportedMachine(f"launchd did not take the service: {said}", hint=hint)


def _not_writable(path: Path, error: OSError) -> R1MacError:
    return NotWritable(
        f"cannot write {path}: {error.strerror or error}", hint=f"make {path.parent} writable for yourself"
    )
