"""``r1mac eval`` as a user runs it."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.checkpoints import CONFIGS, write_checkpoint, write_tokenizer
from tests.cli.conftest import COMMAND, UNCOMPILED, R1mac

MEASURED = ("--tokens", "64", "-q")


@pytest.fixture(name="made")
def _made(tiny: Path, r1mac: R1mac, tmp_path: Path) -> Path:
    """Return a small model at 3 bits, of which nothing was measured."""
    done = r1mac("convert", str(tiny), "-o", str(tmp_path / "made"), "--bits", "3", "--no-smoke", "--no-measure")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "made" / "quality.json").exists()
    return tmp_path / "made"


def test_a_model_beside_its_original(made: Path, tiny: Path, r1mac: R1mac) -> None:
    """What is measured is told, kept, shown by show and plan, and in the way of nothing."""
    done = r1mac("eval", str(made), "--against", str(tiny), "--no-thoughts", "--json", *MEASURED)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    kept = json.loads((made / "quality.json").read_text())
    assert told == {"model": "made", **kept}
    assert kept["divergence"]["reference"] == "tiny"
    assert kept["divergence"]["kl_nats"] > 0
    assert kept["divergence"]["measured"].endswith("+00:00")
    assert kept["perplexity"]["tokens"] == 64
    nats = f"{kept['divergence']['kl_nats']:.4g} nats from tiny"
    assert nats in r1mac("show", str(made)).stdout
    assert json.loads(r1mac("show", str(made), "--json").stdout)["quality"] == kept
    assert nats in r1mac("plan", str(made)).stdout
    assert json.loads(r1mac("plan", str(made), "--json").stdout)["quality"] == kept
    assert r1mac("convert", "--verify", str(made), "--no-smoke").returncode == 0
    assert r1mac("convert", str(tiny), "-o", str(made), "--force", "--no-smoke", "-q").returncode == 0


def test_problems_are_put_and_parts_are_kept_apart(made: Path, r1mac: R1mac, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"prompt": "What is 2 + 2?", "answer": 4}\n' * 2)
    text = tmp_path / "mine.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 3)
    asked = ("--problems", str(problems), "--seeds", "2", "--max-tokens", "64")

    thoughts = []
    for _ in range(2):
        assert r1mac("eval", str(made), "--no-text", *asked, "-q").returncode == 0
        thoughts.append(json.loads((made / "quality.json").read_text())["thoughts"] | {"measured": None})
    done = r1mac("eval", str(made), "--no-thoughts", "--text", str(text), "--tokens", "32")

    assert done.returncode == 0, done.stderr
    assert thoughts[0] == thoughts[1], "the same seeds give the same replies"
    assert thoughts[0]["replies"] == thoughts[0]["thoughts"] == 4
    assert 0 < thoughts[0]["written_tokens"] <= 4 * 64
    assert "0 of 4 answers are right" in done.stdout
    assert "32 tokens of mine.txt" in done.stdout


REFUSED = [
    (["70b"], 3, "r1mac pull 70b"),
    (["made", "--against", "./nowhere"], 3, "nowhere"),
    (["made", "--text", "missing.txt", "--no-thoughts"], 7, "missing.txt"),
    (["made", "--problems", "missing.jsonl"], 7, "missing.jsonl"),
    (["made", "--no-text", "--no-thoughts"], 2, "nothing to measure"),
    (["made", "--no-text", "--against", "tiny"], 2, "--no-text"),
    (["made", "--no-thoughts", "--problems", "p"], 2, "--no-thoughts"),
]


def test_what_cannot_be_measured_is_refused(made: Path, r1mac: R1mac, tmp_path: Path) -> None:
    for arguments, code, said in REFUSED:
        done = r1mac("eval", *arguments, cwd=tmp_path)

        assert done.returncode == code, done.stderr
        assert said in done.stderr
    assert not (made / "quality.json").exists()


def test_models_with_other_tokens_are_not_compared(made: Path, r1mac: R1mac, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", CONFIGS["llama"])
    write_tokenizer(other, think_tokens=False)

    done = r1mac("eval", str(made), "--against", str(other), "--no-thoughts", *MEASURED)

    assert done.returncode == 7
    assert "other tokens" in done.stderr
    assert not (made / "quality.json").exists()


def test_ctrl_c_says_what_is_kept(made: Path, environment: dict[str, str]) -> None:
    """Stopped while problems are put, the text's part is kept whole, and nothing else is there."""
    command = [*COMMAND, "eval", str(made), "--tokens", "64", "--seeds", "100"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment | UNCOMPILED, text=True, **pipes) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("putting problems"):
            assert line, "it ended before it was stopped"
        process.send_signal(signal.SIGINT)
        try:
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 130, rest
    assert "what the text showed is kept" in rest
    kept = json.loads((made / "quality.json").read_text())
    assert set(kept) == {"format", "perplexity"}
    assert not [path for path in made.iterdir() if path.name.startswith(".quality")]
