"""What every test shares: no real home, no real network, no machine but a fake one."""

import itertools
import os
import signal
import socket
import sys
from pathlib import Path

import hypothesis
import pytest

# A test is as fast as the machine allows; how fast, no test says. What passes here passes on the next machine: each
# test tries the same examples every time, and others with R1MAC_EXPLORE=1.
_EXPLORES = bool(os.environ.get("R1MAC_EXPLORE"))
hypothesis.settings.register_profile("r1mac", deadline=None, derandomize=not _EXPLORES, database=None)
hypothesis.settings.load_profile("r1mac")

# Where bytecode is not to be written, each of a thousand processes would compile r1mac anew: a third of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what is behind a & with Ctrl-C ignored, and what the tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _own_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep every test, and every process that it starts, out of the real home and off the real Hub.

    The homes lie in the test's own folder where it asks for one; to make one for each of thousands takes long.
    """
    if "tmp_path" in request.fixturenames:
        own = Path(request.getfixturevalue("tmp_path"))
        home, hub = own / "r1mac-home", own / "hf-home"
    else:
        number = next(_NUMBERS)
        home, hub = (tmp_path_factory.getbasetemp() / f"{name}-{number}" for name in ("r1mac-home", "hf-home"))
    for name in [name for name in os.environ if name.startswith(("R1MAC_", "HF_", "HUGGING_FACE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("R1MAC_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody answers


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test of this process reach beyond this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
