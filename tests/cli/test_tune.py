"""``r1mac tune`` as real processes on a Mac of stubs: every way through, and every way in which it ends."""

import json
import os
import sys
from pathlib import Path

import pexpect
import pytest

from r1mac.units import GIB
from tests.macs import LABEL, ROOT, Mac


@pytest.fixture(name="mac")
def _mac(tmp_path):
    return Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1", gpu_core_count=20)


@pytest.fixture(name="home")
def _home():
    return Path(os.environ["R1MAC_HOME"])


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}


def succeeds(done) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fails(done, code: int, *words: str) -> None:
    """Assert that it ended with *code*, with one sentence that has the *words*, and with no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


# The whole way ------------------------------------------------------------------------------------


def test_from_the_proposal_to_its_end(mac, home):
    """Shown, applied, planned with, kept for each start, still there after one, and undone without a trace."""
    untouched = mac.snapshot()

    assert "51.8 GiB (macOS's own) -> 53.0 GiB (54272 MiB)" in succeeds(mac.r1mac("tune", "70b"))
    assert mac.snapshot() == untouched
    assert files_of(home) == {}

    applied = succeeds(mac.r1mac("tune", "70b", "--apply"))
    assert "51.8 GiB (macOS's own) -> 53.0 GiB (54272 MiB)" in applied
    assert "restart programs" in applied
    assert mac.wired_limit_mib == 54272
    assert mac.snapshot()["daemons"] == {}

    planned = json.loads(mac.r1mac("plan", "70b", "--json").stdout)
    assert (planned["limit_bytes"], planned["fits"], planned["context_tokens"]) == (53 * GIB, True, 32768)
    assert "stays" in succeeds(mac.r1mac("tune", "70b"))

    assert "r1mac's daemon sets 54272 MiB" in succeeds(mac.r1mac("tune", "70b", "--persist"))
    assert mac.loaded == {LABEL}
    mac.restart()
    assert mac.wired_limit_mib == 54272
    assert "r1mac's daemon sets 54272 MiB" in succeeds(mac.r1mac("tune", "--status"))

    assert "53.0 GiB (54272 MiB) -> 51.8 GiB (macOS's own)" in succeeds(mac.r1mac("tune", "--undo"))
    assert mac.snapshot() == untouched
    assert files_of(home) == {}
    assert "nothing to undo" in succeeds(mac.r1mac("tune", "--undo"))
    mac.restart()
    assert mac.snapshot() == untouched


def test_what_it_keeps_is_used_by_plan(mac, home):
    """The context that tune found is the one that the model is planned with afterwards, and a flag overrules it."""
    succeeds(mac.r1mac("tune", "32b", "--context", "20000", "--kv-bits", "8", "--apply"))
    assert "context_tokens = 20000" in (home / "config.toml").read_text()

    kept = json.loads(mac.r1mac("plan", "32b", "--json").stdout)
    said = json.loads(mac.r1mac("plan", "32b", "--context", "4096", "--json").stdout)
    assert (kept["context_tokens"], kept["kv_bits"]) == (20000, 8)
    assert (said["context_tokens"], said["kv_bits"]) == (4096, 8)
    # It fits macOS's own limit, so that root was not needed.
    assert not any(call.startswith("sudo") for call in mac.calls)


def test_undo_keeps_what_the_user_wrote(mac, home):
    """config.toml is the user's: what stood there is there afterwards, to the byte."""
    home.mkdir()
    text = "# mine\nbits = 4   # as always\n\n[models.r1-distill-70b]\nkv_bits = 8 # why not\n"
    (home / "config.toml").write_text(text)
    succeeds(mac.r1mac("tune", "70b", "--apply"))
    assert "# as always" in (home / "config.toml").read_text()
    succeeds(mac.r1mac("tune", "--undo"))

    assert files_of(home) == {"config.toml": text}


def test_a_former_limit_comes_back(mac):
    """Somebody's own limit, too low for the model, is there again after undo."""
    mac.set_sysctl("iogpu.wired_limit_mb", 53100)
    assert "51.9 GiB (53100 MiB) -> 53.0 GiB (54272 MiB)" in succeeds(mac.r1mac("tune", "70b", "--apply"))
    succeeds(mac.r1mac("tune", "--undo"))

    assert mac.wired_limit_mib == 53100


def test_the_data_is_json(mac):
    """Every form of the command tells the same to a program."""
    shown = json.loads(succeeds(mac.r1mac("tune", "70b", "--json")))
    assert (shown["wired_limit_mib_to_set"], shown["proposed"]["context_tokens"]) == (54272, 32768)
    assert shown["command"] == "r1mac tune 70b --apply"
    applied = json.loads(succeeds(mac.r1mac("tune", "70b", "--persist", "--json")))
    assert (applied["before"]["limit_mib"], applied["after"]["limit_mib"]) == (0, 54272)
    assert applied["after"]["daemon_mib"] == 54272
    status = json.loads(succeeds(mac.r1mac("tune", "--status", "--json")))
    assert (status["wired_limit_mib"], status["daemon_mib"], status["drift"]) == (54272, 54272, False)
    assert status["before"] == {"limit_mib": 0, "daemon_mib": None}
    undone = json.loads(succeeds(mac.r1mac("tune", "--undo", "--json")))
    assert undone["after"] == {"limit_mib": 0, "daemon_mib": None, "others": []}
    assert json.loads(succeeds(mac.r1mac("tune", "--undo", "--json")))["undone"] is False


# How it ends when it cannot -----------------------------------------------------------------------


def changes_nothing(mac, home, *arguments: str, code: int, words: tuple[str, ...]) -> None:
    before, files = mac.snapshot(), files_of(home)
    fails(mac.r1mac("tune", *arguments), code, *words)
    assert mac.snapshot() == before
    assert files_of(home) == files


@pytest.mark.parametrize("option", ["--apply", "--persist"])
def test_without_sudo(mac, home, option):
    mac.has_not("/usr/bin/sudo")
    changes_nothing(mac, home, "70b", option, code=9, words=("no sudo", "administrator", "wired-limit"))


@pytest.mark.parametrize("option", ["--apply", "--persist"])
def test_without_a_terminal_for_the_password(mac, home, option):
    """From cron or over a pipe nobody can be asked: sudo is not left waiting."""
    mac.password("secret")
    changes_nothing(mac, home, "70b", option, code=9, words=("no terminal", "Terminal"))
    assert any(call.startswith("sudo -n ") for call in mac.calls)


def test_an_account_that_may_not(mac, home):
    mac.fault("not-in-sudoers")
    changes_nothing(mac, home, "70b", "--apply", code=9, words=("may not use sudo",))


@pytest.mark.parametrize("option", ["--apply", "--persist"])
def test_a_limit_that_does_not_stick(mac, home, option):
    mac.fault("value-does-not-stick")
    changes_nothing(mac, home, "70b", option, code=8, words=("did not keep the limit", "is 0"))


def test_a_daemon_that_launchd_refuses(mac, home):
    """The limit is set for this start, the person is told so, and undo takes it back."""
    untouched = mac.snapshot()
    mac.fault("launchctl-fails")
    fails(mac.r1mac("tune", "70b", "--persist"), 8, "until this Mac starts again, but not at each start", "Login Items")
    assert mac.wired_limit_mib == 54272
    assert (mac.snapshot()["daemons"], mac.loaded) == ({}, set())
    mac.mend("launchctl-fails")
    succeeds(mac.r1mac("tune", "--undo"))

    assert mac.snapshot() == untouched
    assert files_of(home) == {}


def test_undo_that_sudo_refuses_can_be_repeated(mac, home):
    """The record stays until all is back."""
    untouched = mac.snapshot()
    succeeds(mac.r1mac("tune", "70b", "--persist"))
    mac.fault("not-in-sudoers")
    fails(mac.r1mac("tune", "--undo"), 9, "may not use sudo")
    assert (home / "tuning.json").exists()
    mac.mend("not-in-sudoers")
    succeeds(mac.r1mac("tune", "--undo"))

    assert mac.snapshot() == untouched


def test_a_model_that_no_limit_helps(mac, home):
    changes_nothing(mac, home, "671b", "--apply", code=4, words=("GiB with 32768 tokens of context", "r1mac run 70b"))


def test_a_context_that_the_model_does_not_know(mac, home):
    changes_nothing(mac, home, "8b", "--context", "999999", "--apply", code=4, words=("131072", "--context"))


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_this_computer_is_no_mac(r1mac):
    """On Linux there is nothing to tune, whatever is asked."""
    for arguments in (["tune"], ["tune", "70b"], ["tune", "70b", "--apply"], ["tune", "--status"], ["tune", "--undo"]):
        fails(r1mac(*arguments), 8, "only a Mac")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--apply"], ["--persist"], ["--undo", "70b"], ["70b", "--undo", "--apply"], ["--status", "--undo"],
        ["70b", "--reserve", "3gb"], ["70b", "--reserve", "lots"], ["70b", "--kv-bits", "5"],
        # Said, and without an effect: the person would think that it was heeded.
        ["--context", "9000"], ["--kv-bits", "8"], ["--yes"], ["70b", "--yes"], ["--status", "--bits", "3"],
        ["70b", "--status"], ["--undo", "--reserve", "6gb"], ["--undo", "--bits", "3"], ["--undo", "--yes"],
    ],
)  # fmt: skip
def test_a_wrong_command_line(mac, arguments):
    done = mac.r1mac("tune", *arguments)

    assert done.returncode == 2
    assert not any(call.startswith("sudo") for call in mac.calls)


@pytest.mark.parametrize("arguments", [[], ["8b"], ["70b", "--apply"]])
def test_more_than_macos_leaves_by_itself_cannot_be_reserved(mac, arguments):
    """A reserve that no limit can keep is refused with the number, not passed over."""
    done = mac.r1mac("tune", *arguments, "--reserve", "60gb")

    assert done.returncode == 2
    assert "macOS's own limit leaves 12.2 GiB" in done.stderr
    assert mac.wired_limit_mib == 0


def test_a_small_reserve_wants_a_yes(mac, home):
    """Less than r1mac leaves macOS by itself is asked about; with nobody to ask, --yes has to say it."""
    wish = ("70b", "--context", "45056", "--kv-bits", "16", "--reserve", "5gb")
    done = mac.r1mac("tune", *wish, "--apply")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert mac.wired_limit_mib == 0
    succeeds(mac.r1mac("tune", *wish, "--apply", "--yes"))

    assert 57344 < mac.wired_limit_mib <= 60416


# At a terminal ------------------------------------------------------------------------------------


@pytest.fixture(name="terminal")
def _terminal(mac):
    """Return a function that starts r1mac on a terminal of its own, where sudo can ask."""
    started = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}

    def start(*arguments: str) -> pexpect.spawn:
        command, *rest = mac.command(*arguments)
        child = pexpect.spawn(command, rest, env=environment, encoding="utf-8", timeout=60, dimensions=(40, 200))
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def ends(child: pexpect.spawn, code: int) -> str:
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == code, child.before
    return child.before


def test_sudo_asks_and_goes_on(mac, terminal):
    mac.password("secret")
    child = terminal("tune", "70b", "--apply")
    child.expect("Password:")
    child.sendline("wrong")
    child.expect("Sorry, try again")
    child.expect("Password:")
    child.sendline("secret")
    out = ends(child, 0)

    assert "-> 53.0 GiB" in out
    assert "secret" not in out
    assert mac.wired_limit_mib == 54272


def test_the_wrong_password_three_times(mac, home, terminal):
    mac.password("secret")
    child = terminal("tune", "70b", "--persist")
    for _ in range(3):
        child.expect("Password:")
        child.sendline("wrong")
    out = ends(child, 9)

    assert "not given the right password" in out
    assert mac.wired_limit_mib == 0
    assert files_of(home) == {}


def test_ctrl_c_at_the_password(mac, home, terminal):
    """Whoever thinks better of it has changed nothing, and is told so."""
    mac.password("secret")
    child = terminal("tune", "70b", "--apply")
    child.expect("Password:")
    child.sendintr()
    out = ends(child, 9)

    assert "sudo was stopped" in out
    assert "Traceback" not in out
    assert mac.wired_limit_mib == 0
    assert files_of(home) == {}


def test_a_small_reserve_is_asked_about(mac, terminal):
    wish = ("tune", "70b", "--context", "45056", "--kv-bits", "16", "--reserve", "5gb", "--apply")
    child = terminal(*wish)
    child.expect("instead of 8.0 GiB. Set it")
    child.sendline("n")
    ends(child, 130)
    assert mac.wired_limit_mib == 0
    child = terminal(*wish)
    child.expect("Set it")
    child.sendline("y")
    ends(child, 0)

    assert mac.wired_limit_mib > 57344
