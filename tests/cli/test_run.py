"""``r1mac run`` on a real model and on small ones: what goes where, and how it ends."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import COMMAND, ROOT, R1mac

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module", name="answered")
def _answered(demo_home: Path) -> "subprocess.CompletedProcess[str]":
    """Return the second run of the demo model in a home: it has been asked a question."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "R1MAC_HOME": str(demo_home), "NO_COLOR": "1"}
    command = [*COMMAND, "run", "demo", QUESTION, "--temperature", "0", "--max-tokens", "40"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=240
    )


@pytest.mark.demo
def test_the_demo_answers(answered: "subprocess.CompletedProcess[str]") -> None:
    """The demo model gives the right answer on stdout and nothing else there; statistics go to stderr."""
    assert answered.returncode == 0
    assert "Paris" in answered.stdout
    assert "tokens" not in answered.stdout
    assert "tokens" in answered.stderr


@pytest.mark.demo
def test_the_first_run_converts_and_the_second_does_not(
    answered: "subprocess.CompletedProcess[str]", r1mac: R1mac, demo_home: Path, environment: dict[str, str]
) -> None:
    """The demo model is converted when it is first run, listed then, and started at once the second time."""
    environment["R1MAC_HOME"] = str(demo_home)

    assert "converting" in (demo_home / "first-run.txt").read_text(encoding="utf-8")
    assert answered.returncode == 0
    assert "converting" not in answered.stderr
    assert "demo-4bit" in r1mac("list").stdout


def test_a_seed_makes_the_answer_repeatable(r1mac: R1mac, tiny: Path) -> None:
    """The same seed gives the same text, another seed another."""
    texts = [
        r1mac("run", str(tiny), "Tell me a story.", "--no-think", "--seed", seed, "--max-tokens", "16", "-q").stdout
        for seed in ("1", "1", "2")
    ]

    assert texts[0] == texts[1] != texts[2]


@pytest.mark.demo
def test_the_prompt_may_come_through_a_pipe(r1mac: R1mac, demo_home: Path, environment: dict[str, str]) -> None:
    """Text from a pipe is the prompt, or is added to the one on the command line."""
    environment["R1MAC_HOME"] = str(demo_home)
    greedy = ("--temperature", "0", "--max-tokens", "15", "-q")

    piped = r1mac("run", "demo", *greedy, text=QUESTION)
    both = r1mac("run", "demo", "Answer this question:", *greedy, text=QUESTION)

    assert "Paris" in piped.stdout
    assert "Paris" in both.stdout


def test_thought_and_answer_are_told_apart(r1mac: R1mac, tiny: Path) -> None:
    """Where the template opens the thought, text is thought (stderr) until the model closes it."""
    done = r1mac("run", str(tiny), "hi", "--max-tokens", "8", "--seed", "1")

    assert done.returncode == 0
    assert done.stdout == ""
    assert "stopped at --max-tokens" in done.stderr


def test_no_think_answers_at_once(r1mac: R1mac, tiny: Path) -> None:
    """With --no-think the first token is already part of the answer."""
    done = r1mac("run", str(tiny), "hi", "--max-tokens", "8", "--seed", "1", "--no-think", "-q")

    assert done.returncode == 0
    assert done.stdout.strip()
    assert done.stderr == "[stopped at --max-tokens]\n"


def test_json_writes_one_object_a_line(r1mac: R1mac, tiny: Path) -> None:
    """With --json every line of stdout is an object; the last one has the statistics."""
    done = r1mac("run", str(tiny), "hi", "--max-tokens", "5", "--json", "--no-think")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert {"progress", "prefill_progress", "text_delta", "finished"} <= {event["event"] for event in events}
    assert events[-1]["event"] == "finished"
    assert events[-1]["stats"]["generated_tokens"] == 5


def test_json_errors_are_objects_too(r1mac: R1mac) -> None:
    """With --json an error is the last object, with the exit code that the process has."""
    done = r1mac("run", "nosuch", "hi", "--json")

    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"], done.returncode) == ("error", 3, 3)


@pytest.mark.demo
def test_ctrl_c_stops_the_answer(demo_home: Path, environment: dict[str, str]) -> None:
    """Ctrl-C ends a one-shot run with 130: what was written stays, and there is no traceback."""
    environment["R1MAC_HOME"] = str(demo_home)
    process = subprocess.Popen(
        [*COMMAND, "run", "demo", "Explain step by step how a bicycle works.", "--temperature", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    begun = os.read(process.stdout.fileno(), 1)

    process.send_signal(signal.SIGINT)

    rest, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert begun + rest
    assert b"Traceback" not in stderr
    assert b"[stopped]" in stderr


@pytest.mark.demo
def test_a_killed_conversion_leaves_no_model(r1mac: R1mac, environment: dict[str, str]) -> None:
    """kill -9 in the middle of a conversion leaves nothing that is listed, and the next run makes the model."""
    process = subprocess.Popen(
        [*COMMAND, "pull", "demo", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("done", 0) > 0:
            break
    process.kill()
    process.communicate()

    listed = r1mac("list", "--json")

    assert json.loads(listed.stdout) == []
    again = r1mac("pull", "demo")
    assert again.returncode == 0
    assert [model["name"] for model in json.loads(r1mac("list", "--json").stdout)] == ["demo-4bit"]


@pytest.mark.demo
def test_the_chat(demo_home: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """A chat answers, stops an answer at Ctrl-C and goes on, saves, and leaves with 130 at a second Ctrl-C."""
    environment |= {"R1MAC_HOME": str(demo_home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    saved = tmp_path / "talk.json"
    chat = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "run", "demo", "--temperature", "0"],
        env=environment,
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 120),
    )
    chat.expect(">>>")
    chat.send(QUESTION + "\r")
    chat.expect("Paris")
    chat.expect("wrote")
    chat.expect(">>>")
    chat.send("Write the numbers from one to a hundred.\r")
    # A number, which the echo of the question does not have.
    chat.expect("1\\. ")
    chat.sendintr()
    chat.expect("stopped")
    chat.expect(">>>")
    chat.send("/help\r")
    chat.expect("/reset")
    chat.send(f"/save {saved}\r")
    chat.expect("saved 4 messages")
    chat.send("/nonsense\r")
    chat.expect("no command")
    chat.expect(">>>")

    chat.sendintr()

    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 130
    conversation = json.loads(saved.read_text(encoding="utf-8"))
    assert [message["role"] for message in conversation] == ["user", "assistant", "user", "assistant"]
    assert "Paris" in conversation[1]["content"]
