"""Every error that a user can meet. The class is the exit code.

=====================  ====  =========================================================
class                  code  raised when
=====================  ====  =========================================================
UnknownModel              3  no catalog entry, folder or Hub repository has that name
DoesNotFit                4  the plan needs more memory than this machine gives
BadRecipe                 5  a recipe or quantisation cannot be applied to this model
DownloadFailed            6  the Hub answered wrongly, was cut off, or the bytes are not right
BadCheckpoint             7  a model's file is damaged, incomplete, unsafe or of an unknown kind
UnsupportedMachine        8  the computer cannot do what was asked
NeedsAdmin                9  root is needed
PortInUse                10  the server's port is taken
DiskFull                 11  there is not enough room on the disk
ChecksFailed             12  doctor found something broken
RankFailed               13  a process of a distributed run failed
AccessDenied             14  the Hub wants a login or an accepted licence
NotWritable              15  the folder for models cannot be written
Offline                  16  the Hub cannot be reached
BadSettings              17  config.toml or an R1MAC_* variable is wrong
BadAnswerFormat          18  a JSON schema, regular expression or grammar for the answer cannot be used
BadPrompts               19  a file of prompts cannot be read as one
UnknownChat              20  there is no earlier conversation to go on with
=====================  ====  =========================================================

0 is success, 1 a bug (please report it), 2 a wrong command line, 130 an interruption.
A code is never used again for something else.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from r1mac.units import format_size

if TYPE_CHECKING:
    from pathlib import Path  # 4 ms of a start that needs no path

# Hints that several places give.
FREE_SOME_SPACE = "free some space (`r1mac list` shows the models, `r1mac rm MODEL` deletes one)"
PUT_MODELS_ELSEWHERE = "or put models elsewhere with R1MAC_MODELS_DIR"


class R1MacError(Exception):
    """What went wrong in one sentence with its numbers, and what would help this user.

    Attributes:
        problem: one sentence, without a final full stop, that names the file, model or number.
        hint: a command or a choice that would really help, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class UnknownModel(R1MacError):
    """No catalog entry, folder or Hub repository has that name."""

    exit_code = 3


class DoesNotFit(R1MacError):
    """The plan needs more memory than this machine gives."""

    exit_code = 4


class PromptTooLong(DoesNotFit):
    """A conversation is longer than memory is planned for: a shorter one would fit."""


class BadRecipe(R1MacError):
    """A recipe or quantisation cannot be applied to this model."""

    exit_code = 5


class DownloadFailed(R1MacError):
    """The Hub answered wrongly, was cut off, or the bytes are not the right ones."""

    exit_code = 6


class BadCheckpoint(R1MacError):
    """A model's file is damaged, incomplete, unsafe or of an unknown kind."""

    exit_code = 7


class RefusedConversation(BadCheckpoint):
    """A model's chat template refuses a conversation: it would take another one."""


class UnsupportedMachine(R1MacError):
    """The computer cannot do what was asked."""

    exit_code = 8


class NeedsAdmin(R1MacError):
    """Root is needed, and was not to be had."""

    exit_code = 9


class PortInUse(R1MacError):
    """The server's port is taken."""

    exit_code = 10


class DiskFull(R1MacError):
    """There is not enough room on the disk."""

    exit_code = 11


class ChecksFailed(R1MacError):
    """The doctor found something broken."""

    exit_code = 12


class AccessDenied(R1MacError):
    """The Hub wants a login or an accepted licence."""

    exit_code = 14


class NotWritable(R1MacError):
    """The folder for models cannot be written."""

    exit_code = 15


class Offline(R1MacError):
    """The Hub cannot be reached."""

    exit_code = 16


class BadSettings(R1MacError):
    """config.toml or an ``R1MAC_*`` variable is wrong."""

    exit_code = 17


class BadAnswerFormat(R1MacError):
    """A JSON schema, regular expression or grammar for the answer cannot be used."""

    exit_code = 18


class BadPrompts(R1MacError):
    """A file of prompts cannot be read as one."""

    exit_code = 19


class UnknownChat(R1MacError):
    """There is no earlier conversation to go on with."""

    exit_code = 20


# EFBIG is a file-size limit (ulimit -f), EDQUOT a user's quota: both are «no room» to a person.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# EIO is a disk that was unplugged, ENOTDIR and ELOOP a path through something that is no folder.
_NO_WRITING = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_NO_WRITING |= {errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


@contextlib.contextmanager
def writing_to(path: "Path", *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the operating system's refusal to write below *path* into DiskFull or NotWritable."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            need = f" ({format_size(needed_bytes)} in all are needed)" if needed_bytes else ""
            raise DiskFull(
                f"no room left while writing to {path}{need}: {error.strerror}",
                hint=f"{FREE_SOME_SPACE}, {PUT_MODELS_ELSEWHERE}",
            ) from error
        if error.errno in _NO_WRITING:
            raise NotWritable(
                f"cannot write to {path}: {error.strerror}",
                hint=f"make that folder writable, {PUT_MODELS_ELSEWHERE}",
            ) from error
        raise
