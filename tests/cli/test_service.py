"""``r1mac service`` as real processes on a Mac of stubs, and on a computer that is none."""

import json
import os
import plistlib
import sys
from pathlib import Path

import pytest

from r1mac import durable
from r1mac.cli import main
from r1mac.errors import UnsupportedMachine
from r1mac.machine.command import CommandResult
from r1mac.machine.darwin import DarwinMachine
from r1mac.machine.launch_agent import LaunchAgent, Service, ServiceState, plist_text
from tests.checkpoints import CONFIGS, write_checkpoint
from tests.macs import Mac

SERVE = [sys.executable, "-m", "r1mac", "serve"]
LABEL = "dev.r1mac.serve"
SERVICE = Service(argv=("/usr/bin/true",), environment={}, exit_seconds=2)


@pytest.fixture(name="mac")
def _mac(tmp_path, monkeypatch):
    mac = Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1", gpu_core_count=20)
    monkeypatch.setenv("HOME", str(mac.folder / "Users/eve"))
    monkeypatch.delenv("R1MAC_API_KEY", raising=False)
    return mac


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", CONFIGS["llama"])


def agent_file(mac: Mac) -> Path:
    return mac.folder / "Users/eve/Library/LaunchAgents" / f"{LABEL}.plist"


def plist(mac: Mac) -> dict:
    return plistlib.loads(agent_file(mac).read_bytes())


def status(mac: Mac) -> dict:
    return json.loads(succeeds(mac.r1mac("service", "status", "--json")))


def succeeds(done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def fails(done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_from_its_installation_to_its_end(mac, model):
    """Nothing there, installed and running, installed again without a change, replaced, and gone without a trace."""
    assert (status(mac)["installed"], status(mac)["loaded"]) == (False, False)

    succeeds(mac.r1mac("service", "install", "./tiny", "--port", "8080", cwd=model.parent))
    made = plist(mac)
    assert made["ProgramArguments"] == [*SERVE, str(model), "--port", "8080"]
    assert made["RunAtLoad"] is True
    assert made["KeepAlive"] is False
    # The replies may end (30 s unless said otherwise), and the model be let go of.
    assert made["ExitTimeOut"] == 90
    assert made["StandardErrorPath"] == str(mac.folder / "Users/eve/Library/Logs/r1mac/serve.log")
    assert Path(made["StandardErrorPath"]).parent.is_dir()
    assert made["EnvironmentVariables"]["R1MAC_HOME"] == os.environ["R1MAC_HOME"]
    assert mac.loaded == {LABEL}
    assert (status(mac)["pid"], status(mac)["command"]) == (4242, made["ProgramArguments"])

    again = mac.r1mac("service", "install", str(model), "--port", "8080")
    assert "nothing changed" in again.stderr
    assert sum("bootstrap" in call for call in mac.calls) == 1

    mac.fault("ends-later", "2")
    succeeds(mac.r1mac("service", "install", str(model), "--port", "8081"))
    assert plist(mac)["ProgramArguments"][-1] == "8081"
    assert mac.loaded == {LABEL}

    assert "is taken away" in mac.r1mac("service", "remove").stderr
    assert not agent_file(mac).exists()
    assert mac.loaded == set()
    assert "no service is installed" in mac.r1mac("service", "remove").stderr
    assert not any(call.startswith("sudo") for call in mac.calls)


@pytest.mark.parametrize("form", [["--api-key", "sesame"], ["--api-key=sesame"]])
def test_the_key_is_in_a_file_that_nobody_else_reads(mac, model, form):
    succeeds(mac.r1mac("service", "install", *form, str(model), "--host", "0.0.0.0", "--patience", "2m"))

    made = plist(mac)
    assert made["ProgramArguments"] == [*SERVE, str(model), "--host", "0.0.0.0", "--patience", "2m"]
    assert made["EnvironmentVariables"]["R1MAC_API_KEY"] == "sesame"
    assert made["ExitTimeOut"] == 180
    assert agent_file(mac).stat().st_mode & 0o777 == 0o600


def test_without_a_model_the_stored_ones_are_served_when_they_are_asked_for(mac):
    succeeds(mac.r1mac("service", "install"))

    assert plist(mac)["ProgramArguments"] == SERVE


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["70b"], 3, ["is not on this disk", "r1mac pull 70b"]),
        (["no-such-model"], 3, ["no-such-model"]),
        (["--prt", "8080"], 2, ["--prt"]),
        (["--port", "99999"], 2, ["99999"]),
        (["--host", "0.0.0.0"], 2, ["--api-key"]),
    ],
)
def test_what_could_not_be_served_is_refused_at_once(capsys, monkeypatch, arguments, code, words):
    monkeypatch.delenv("R1MAC_API_KEY", raising=False)

    with pytest.raises(SystemExit) as end:
        main(["service", "install", *arguments])

    assert end.value.code == code
    said = capsys.readouterr().err
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("launchctl-fails", ["Input/output error", "Login Items"]), ("nobody-at-the-screen", ["own screen"])],
)
def test_what_launchd_does_not_take_leaves_nothing(mac, fault, words):
    mac.fault(fault)
    agent = mac.machine().launch_agent()

    with pytest.raises(UnsupportedMachine) as refused:
        agent.install(SERVICE)

    assert all(word in f"{refused.value.problem} {refused.value.hint}" for word in words)
    assert not agent_file(mac).exists()
    assert agent.state() == ServiceState(argv=None, loaded=False)


def test_a_service_that_does_not_end_is_told_of(tmp_path):
    stuck = CommandResult(returncode=0, stdout="\tpid = 4242\n")
    agent = LaunchAgent(run=lambda _argv: stuck, home=tmp_path, user_id=501, pause=lambda _seconds: None)
    durable.write_whole(agent.file, plist_text(SERVICE, agent.log))

    with pytest.raises(UnsupportedMachine, match=r"did not end dev\.r1mac\.serve within 12 seconds"):
        agent.remove()

    assert agent.state().argv == SERVICE.argv


def test_it_is_not_installed_for_root(mac):
    with pytest.raises(UnsupportedMachine, match="root"):
        DarwinMachine(run=mac.machine()._run, user_id=0).launch_agent().install(SERVICE)

    assert not agent_file(mac).exists()


def test_a_computer_without_launchd_is_told_of_systemd(r1mac, model):
    done = r1mac("service", "install", str(model), "--port", "8080")

    fails(done, 8, "only a Mac has launchd", "systemctl --user enable --now r1mac")
    assert f"ExecStart={' '.join([*SERVE, str(model), '--port', '8080'])}" in done.stderr
    fails(r1mac("service", "status"), 8, "only a Mac has launchd")
