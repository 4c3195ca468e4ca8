"""The wired limit of a Mac: what is set, what a daemon sets at each start, and the script that changes both.

``iogpu.wired_limit_mb`` is counted in MiB; 0 is macOS's own limit. Reading needs no root. Whatever changes it is
``scripts/wired-limit``, run through sudo.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from r1mac import paths
from r1mac.errors import NeedsAdmin, R1MacError, UnsupportedMachine
from r1mac.machine.admin import CANCELLED, SUDO, has_terminal
from r1mac.machine.base import WIRED_LIMIT_KEY
from r1mac.machine.command import CommandResult, Run
from r1mac.machine.darwin_files import LAUNCH_DAEMONS, read_startup_settings
from r1mac.machine.readings import StartupSetting

LABEL = "dev.r1mac.gpu-wired-limit"
READ = ("/usr/sbin/sysctl", "-n", WIRED_LIMIT_KEY)
# Below this the script sets nothing: a limit in GiB would leave the GPU without a screen's memory.
LEAST_MIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WiredState:
    """What is set, and what will be at the next start.

    Attributes:
        limit_mib: the kernel's limit; 0 is macOS's own.
        daemon_mib: what r1mac's LaunchDaemon sets at each start; None without one.
        others: what other files of the system set at each start.
    """

    limit_mib: int
    daemon_mib: int | None = None
    others: tuple[StartupSetting, ...] = ()

    @property
    def at_start_mib(self) -> int:
        """The limit after a start without r1mac's daemon: another daemon's, or macOS's own."""
        return self.others[-1].value if self.others else 0


class DaemonRefused(UnsupportedMachine):
    """The limit is set until the next start, and launchd did not take the daemon that sets it at each start."""


class WiredLimit:
    """The wired limit of this Mac.

    Args:
        run: runs a command.
        run_as_admin: runs a command line that begins with sudo.
        root: where the system's files are.
        script: what runs as root.
        has_terminal: tells whether sudo could ask for a password.
    """

    def __init__(
        self,
        *,
        run: Run,
        run_as_admin: Run,
        root: Path = Path("/"),
        script: Path | None = None,
        has_terminal: Callable[[], bool] = has_terminal,
    ) -> None:
        self._run = run
        self._run_as_admin = run_as_admin
        self._root = root
        self._script = script or paths.script("wired-limit")
        self._has_terminal = has_terminal

    def read(self) -> WiredState:
        """Return what is set now.

        Raises:
            UnsupportedMachine: this macOS has no such limit.
        """
        answer = self._run(READ)
        if answer.returncode != 0 or not answer.stdout.strip().isdecimal():
            raise UnsupportedMachine(
                f"this macOS has no {WIRED_LIMIT_KEY}, which came with macOS 14",
                hint="update macOS in System Settings > General > Software Update",
            )
        own = self._root / LAUNCH_DAEMONS / f"{LABEL}.plist"
        settings = [setting for setting in read_startup_settings(self._root) if setting.key == WIRED_LIMIT_KEY]
        daemon = [setting.value for setting in settings if setting.path == own]
        # macOS does not read /etc/sysctl.conf, so only plists count.
        others = tuple(setting for setting in settings if setting.path != own and setting.path.suffix == ".plist")
        return WiredState(limit_mib=int(answer.stdout), daemon_mib=daemon[-1] if daemon else None, others=others)

    def set(self, mib: int) -> None:
        """Set the limit until the next start; 0 is macOS's own.

        Raises:
            NeedsAdmin: sudo did not run it.
            UnsupportedMachine: this Mac cannot have that limit, or did not keep it.
        """
        self._change(*(("set", str(mib)) if mib else ("reset",)))

    def install(self, mib: int) -> None:
        """Set the limit, now and at each start.

        Raises:
            NeedsAdmin: sudo did not run it.
            DaemonRefused: the limit is set until the next start only.
            UnsupportedMachine: this Mac cannot have that limit, or did not keep it.
        """
        self._change("install", str(mib))

    def uninstall(self) -> None:
        """Set nothing at the next starts; the limit stays as it is now.

        Raises:
            NeedsAdmin: sudo did not run it.
        """
        self._change("uninstall")

    def command_line(self, *words: str) -> str:
        """Return what a person would type to run the script, such as ``sudo sh …/wired-limit reset``."""
        import shlex

        return f"sudo sh {shlex.quote(str(self._script))} {' '.join(words)}"

    def _change(self, *words: str) -> None:
        if not self._script.is_file():
            raise NeedsAdmin(
                f"the script that sets the wired limit is missing from this r1mac: {self._script}",
                hint="install r1mac again",
            )
        # Without -n, sudo would wait for a password that nobody can type.
        ask = () if self._has_terminal() else ("-n",)
        result = self._run_as_admin((SUDO, *ask, "/bin/sh", str(self._script), *words))
        if result.returncode != 0:
            raise self._failure(result, words)

    def _failure(self, result: CommandResult, words: tuple[str, ...]) -> R1MacError:
        by_hand = f"in an administrator's account: {self.command_line(*words)}"
        lines = result.stderr.strip().splitlines() or ["it said nothing"]
        said = next((line for line in lines if line.startswith(_SCRIPT)), lines[-1])
        said = said.removeprefix(_SCRIPT).removeprefix("sudo: ")
        if result.returncode == 1:
            return _sudo_failure(result.stderr, said, by_hand)
        unknown = (NeedsAdmin, f"the script ended with {result.returncode}: {{said}}", "{by_hand}")
        code = CANCELLED if result.returncode < 0 else result.returncode
        kind, problem, hint = _FAILURES.get(code, unknown)
        return kind(problem.format(said=said), hint=hint.format(by_hand=by_hand) or None)


_SCRIPT = "wired-limit: "
_NO_DAEMON = "the limit is set until this Mac starts again, but not at each start: {said}"
_ALLOW = (
    "if r1mac is switched off in System Settings > General > Login Items & Extensions, allow it there; then try again"
)
# By exit code: the system's, then those that the script's head lists.
_FAILURES: dict[int, tuple[type[R1MacError], str, str]] = {
    127: (NeedsAdmin, "this Mac has no sudo", "{by_hand}"),
    124: (NeedsAdmin, "sudo did not come to an end", "try again"),
    CANCELLED: (NeedsAdmin, "sudo was stopped before it was done", "try again when you have the password"),
    65: (UnsupportedMachine, "{said}", ""),
    69: (UnsupportedMachine, "{said}", ""),
    71: (DaemonRefused, _NO_DAEMON, _ALLOW),
    73: (UnsupportedMachine, "{said}", "start this Mac again, then try again; or {by_hand}"),
    74: (UnsupportedMachine, "macOS did not keep the limit: {said}", "start this Mac again, then try again"),
    77: (NeedsAdmin, "sudo did not make the script root", "{by_hand}"),
}


def _sudo_failure(stderr: str, said: str, hint: str) -> NeedsAdmin:
    if "password attempt" in stderr:
        return NeedsAdmin(
            "sudo was not given the right password",
            hint="it is the password with which you log in, if you are an administrator of this Mac",
        )
    if "a password is required" in stderr or "a terminal is required" in stderr:
        return NeedsAdmin(
            "this needs an administrator's password, and there is no terminal to ask for it on",
            hint="run the same command in Terminal",
        )
    if "not in the sudoers file" in stderr or "not allowed to" in stderr:
        return NeedsAdmin("this account may not use sudo", hint=hint)
    return NeedsAdmin(f"sudo failed: {said}", hint=hint)
