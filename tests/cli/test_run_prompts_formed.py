"""`r1mac run --prompts` with a format: every answer has it, though they are written side by side."""

import json
from pathlib import Path

from tests.cli.conftest import R1mac


def test_answers_side_by_side_have_their_format(tiny: Path, r1mac: R1mac) -> None:
    done = r1mac(
        "run", str(tiny), "--prompts", "-", "--regex", "[0-9]{3}", "--no-think", "--parallel", "2", "--context", "512",
        text="Name a number.\nAnother, please.\nAnd one more.\n",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["line"] for line in lines) == [1, 2, 3]
    assert all(line["answer"].isdecimal() and len(line["answer"]) == 3 for line in lines)
    assert all(line["reason"] == "stop" for line in lines)
