"""``r1mac run``: how tokens are chosen and what an answer must look like, as real processes."""

from pathlib import Path

import pytest

from tests.cli.conftest import R1mac


def _text(r1mac: R1mac, model: Path, *arguments: str) -> str:
    """Return what a small random model answers."""
    done = r1mac("run", str(model), "hi", "--no-think", "-q", "--max-tokens", "24", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [("--top-k", "1"), ("--min-p", "1")])
def test_one_token_to_choose_from_is_greedy(arguments: tuple[str, ...], r1mac: R1mac, tiny: Path) -> None:
    """With only the likeliest token left to choose, a sampled text is the greedy one."""
    assert _text(r1mac, tiny, *arguments, "--seed", "1") == _text(r1mac, tiny, "--temperature", "0")


def test_penalties_change_the_text(r1mac: R1mac, tiny: Path) -> None:
    """A greedy model that is penalised for what it wrote repeats itself less."""
    plain = _text(r1mac, tiny, "--temperature", "0", "--max-tokens", "60")

    penalised = _text(r1mac, tiny, "--temperature", "0", "--max-tokens", "60", "--presence-penalty", "2")

    assert len(set(penalised)) > len(set(plain))


def test_a_bias_forces_a_token(r1mac: R1mac, tiny: Path) -> None:
    """A token with the bias 100 is all that is written."""
    assert set(_text(r1mac, tiny, "--logit-bias", "x=100").strip()) == {"x"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--logprobs", "3"), 2, "--logprobs needs --json"),
        (("--stop", ""), 2, "--stop needs a text"),
        (("--json-schema", '{"type": "objct"}'), 18, "JSON schema for the answer cannot be used: Invalid type: objct"),
        (("--regex", "("), 18, "the regular expression for the answer cannot be used"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_looked_for(
    arguments: tuple[str, ...], code: int, words: str, r1mac: R1mac
) -> None:
    """A wrong command line ends with 2 and a format that cannot be used with 18, each with a sentence."""
    done = r1mac("run", "no-such-model", "hi", *arguments)

    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
