"""Errors, their exit codes, and the operating system's refusals."""

import errno
import os
import re
from pathlib import Path

import pytest

from r1mac import errors
from r1mac.errors import BadCheckpoint, DiskFull, NotWritable, R1MacError, writing_to

_ROW = re.compile(r"^([A-Z]\w+)\s+(\d+)\s+\S.*$", re.MULTILINE)
_TABLE = {name: int(code) for name, code in _ROW.findall(errors.__doc__)}
_CLASSES = {item.__name__: item for item in R1MacError.__subclasses__() if item.__module__ == errors.__name__}


def _refused(code: int, path: Path = Path("/models"), **wanted: int) -> BaseException:
    """Return what becomes of an OSError with the number *code* while something is written."""
    with pytest.raises(Exception) as caught, writing_to(path, **wanted):  # noqa: PT011 - the class is asserted
        raise OSError(code, os.strerror(code))
    return caught.value


def test_every_class_has_the_exit_code_of_the_table():
    """Each class of errors.py stands in the module's table with its own exit code."""
    assert len(_TABLE) >= len(_CLASSES) >= 11
    assert {name: item.exit_code for name, item in _CLASSES.items()} == {name: _TABLE[name] for name in _CLASSES}


def test_no_exit_code_has_two_meanings():
    """The codes of the table are all different, and none is 0 to 2 or 130, which mean something else."""
    codes = list(_TABLE.values())

    assert len(set(codes)) == len(codes)
    assert not set(codes) & {0, 1, 2, 130}


@pytest.mark.parametrize("kind", _CLASSES.values())
def test_an_error_carries_its_problem_and_its_hint(kind):
    """The problem is also the exception's text, and a hint may be missing."""
    error = kind("the file is short", hint="fetch it again")

    assert (str(error), error.problem, error.hint) == ("the file is short", "the file is short", "fetch it again")
    assert kind("x").hint is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_of_any_kind_is_disk_full(code):
    """A full disk, a used-up quota and a file-size limit are DiskFull, which names the folder and the cause."""
    error = _refused(code)

    assert type(error) is DiskFull
    assert "/models" in error.problem
    assert os.strerror(code) in error.problem
    assert isinstance(error.__cause__, OSError)


def test_disk_full_tells_how_much_is_needed():
    """Where the caller knows the sum, DiskFull says it."""
    assert "39.7 GB in all are needed" in _refused(errno.ENOSPC, needed_bytes=39_688_355_840).problem


@pytest.mark.parametrize(
    "code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG]
)
def test_a_folder_that_cannot_be_written_is_not_writable(code):
    """A read-only or unplugged disk, missing permissions and a path that is none are NotWritable, with a way out."""
    error = _refused(code)

    assert type(error) is NotWritable
    assert "/models" in error.problem
    assert "R1MAC_MODELS_DIR" in error.hint


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EINTR, errno.EINVAL, errno.EMFILE])
def test_other_failures_of_the_system_stay_what_they_are(code):
    """What is neither about room nor about the place passes unchanged."""
    error = _refused(code)

    assert isinstance(error, OSError)
    assert error.errno == code


@pytest.mark.parametrize("error", [ValueError("x"), BadCheckpoint("x"), KeyboardInterrupt()])
def test_errors_that_are_not_the_systems_pass(error):
    """Only OSError is translated."""
    with pytest.raises(type(error)) as caught, writing_to(Path("/models")):
        raise error

    assert caught.value is error


def test_a_real_refusal_is_translated(tmp_path):
    """Writing beyond a real file-size limit is DiskFull."""
    resource = pytest.importorskip("resource")
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(DiskFull), writing_to(tmp_path):
            (tmp_path / "large").write_bytes(b"x" * 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
