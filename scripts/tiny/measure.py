"""What a trained tiny model can do: sums that it has never seen, put to it through r1mac, and its prediction layer."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from r1mac.prepare.problems import answered_number
from scripts.tiny.batches import Conversation, padded, prompt_text
from scripts.tiny.model import TinyModel
from scripts.tiny.problems import Exchange
from scripts.tiny.tape import Array
from scripts.tiny.words import END, THOUGHT


class Answered(NamedTuple):
    """What a model wrote about a sum.

    Attributes:
        right: the box has the number.
        closed: the thought and the answer ended by themselves.
    """

    exchange: Exchange
    thought: str
    answer: str
    right: bool
    closed: bool


class Acceptance(NamedTuple):
    """How often the prediction layer foresees the token after the next.

    Attributes:
        tokens: that it could foresee.
        accepted: the share of them that it did.
        loads: of each layer with experts: the share of its choices that each expert got.
    """

    tokens: int
    accepted: float
    loads: dict[int, Array]


def ask(model: str, exchanges: Sequence[Exchange], options: Sequence[str]) -> list[Answered]:
    """Return what r1mac answers with *model*, a name or a folder, by ``run --prompts``."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        lines = (json.dumps({"prompt": exchange.question}) for exchange in exchanges)
        prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "r1mac", "run", model, "--prompts", str(prompts), "--quiet", *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    replies = {reply["line"]: reply for reply in map(json.loads, done.stdout.splitlines())}
    return [_answered(exchange, replies[line]) for line, exchange in enumerate(exchanges, 1)]


def _answered(exchange: Exchange, reply: Mapping[str, str]) -> Answered:
    right = answered_number(reply["answer"]) == exchange.answer_number
    closed = reply["reason"] == "stop" and not reply["notices"] and bool(reply["thought"].strip())
    return Answered(exchange, reply["thought"], reply["answer"], right, closed)


def acceptance(model: TinyModel, tokenizer: Tokenizer, answers: Sequence[Answered]) -> Acceptance:
    """Return how often *model*'s prediction layer foresees what was written."""
    said = []
    for answered in answers:
        heard = prompt_text(answered.exchange.question)
        reply = f"{answered.thought.strip()}\n{THOUGHT}\n\n{answered.answer.strip()}{END}"
        parts = [tokenizer.encode(text, add_special_tokens=False).ids for text in (heard, reply)]
        # The first token of the reply is not foreseen: the step that reads the prompt gives it.
        weights = [0.0] * (len(parts[0]) + 1) + [1.0] * (len(parts[1]) - 1)
        said.append(Conversation(parts[0] + parts[1], weights))
    batch = padded(said)
    _, second, loads = model.guesses(batch)
    foreseen = (second[:, :-2] == batch.ids[:, 2:]) & (batch.weights[:, 2:] > 0)
    tokens = int(np.count_nonzero(batch.weights))
    return Acceptance(tokens, int(foreseen.sum()) / tokens, loads)
