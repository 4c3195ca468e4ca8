"""Running one command as root through sudo, which asks the person for the password itself."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from r1mac.machine.command import CommandResult

SUDO = "/usr/bin/sudo"
CANCELLED = 130  # what a shell says of a command that Ctrl-C ended
# sudo itself waits five minutes for each of three attempts.
_PATIENCE_SECONDS = 1000.0


def run_as_admin(argv: tuple[str, ...]) -> CommandResult:
    """Run *argv*, which begins with sudo's path, and let it ask on the terminal; 130 says that Ctrl-C ended it.

    Only what a command prints is captured: sudo asks for the password on the terminal itself.
    """
    import subprocess

    cancelled = threading.Event()
    with _ctrl_c_is_for_sudo(cancelled):
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env={"LC_ALL": "C"},
            )
        except OSError as error:
            return CommandResult(returncode=127, stdout="", stderr=str(error))
        try:
            stdout, stderr = process.communicate(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as error:
            # It belongs to root, so that the kernel may not let it be ended.
            with contextlib.suppress(PermissionError):
                process.terminate()
            return CommandResult(returncode=124, stdout="", stderr=str(error))
    if cancelled.is_set() and process.returncode != 0:
        return CommandResult(returncode=CANCELLED, stdout=stdout, stderr=stderr)
    return CommandResult(returncode=process.returncode, stdout=stdout, stderr=stderr)


def has_terminal() -> bool:
    """Return whether there is a terminal that sudo could ask on, whatever the standard streams are."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _ctrl_c_is_for_sudo(cancelled: threading.Event) -> Iterator[None]:
    """Leave Ctrl-C to sudo, which gets it too: this process has to see what became of the command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
