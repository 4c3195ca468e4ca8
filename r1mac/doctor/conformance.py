"""Tokenizer and chat template of each stored model: what would make it answer nonsense without an error."""
# ruff: noqa: RUF001 - the bars of R1's own tokens

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1mac.doctor.examination import CheckResult, Examination, Status
from r1mac.engine.config import config_changes, end_ids
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.request import Message
from r1mac.engine.think import THINK_END, THINK_START
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import BadCheckpoint
from r1mac.formats.folder import read_config

_ASSISTANT, _USER = "<｜Assistant｜>", "<｜User｜>"
_BOS, _EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_FETCH_AGAIN = "fetch tokenizer.json, tokenizer_config.json and chat_template.jinja again from the model's repository"

# Names of special tokens in a rendered prompt, with true bars (U+FF5C) or ASCII ones.
_MARKER = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>")
_MARKERS = (_BOS, _EOS, _USER, _ASSISTANT, THINK_START, THINK_END)
# The ids of _MARKERS by model type and size of the vocabulary, read from the models' own repositories; None is
# one that was not read.
_R1_IDS: dict[tuple[str, int], tuple[int | None, ...]] = {
    ("deepseek_v3", 129_280): (0, 1, 128_803, 128_804, 128_798, 128_799),
    ("qwen2", 151_936): (151_646, 151_643, 151_644, 151_645, 151_648, 151_649),
    ("qwen2", 152_064): (151_646, 151_643, 151_644, 151_645, 151_648, 151_649),
    ("llama", 128_256): (128_000, 128_001, 128_011, 128_012, 128_013, 128_014),
    ("qwen3", 151_936): (151_643, 151_645, None, None, 151_667, 151_668),
}


def check_tokenizers(examination: Examination) -> Iterator[CheckResult]:
    """Say of each stored model whether text goes through its tokenizer and template as its makers meant it."""
    for model in examination.models:
        found, faults = conformance(model.path)
        if not faults:
            yield CheckResult(name="tokenizer", subject=model.name, status="ok", found=found)
        for status, fault, why in faults:
            yield CheckResult(
                name="tokenizer", subject=model.name, status=status, found=fault, why=why, fix=_FETCH_AGAIN
            )


Fault = tuple[Status, str, str]


def conformance(folder: Path) -> tuple[str, list[Fault]]:
    """Return what tokenizer and template in *folder* are, and (status, fault, why it matters) of each fault."""
    try:
        config = read_config(folder)
        tokenizer = Tokenizer(folder, config_eos_ids=end_ids(folder, config))
        template = PromptTemplate(folder, tokenizer)
        facts = _Facts(tokenizer, template, config)
        config_changes(config)
    except BadCheckpoint as error:  # among them a tokenizer that does not give back what it is given
        return "", [("fail", error.problem, "the model is not loaded like this")]
    except (LookupError, TypeError, ValueError) as error:
        return "", [("fail", f"config.json has a setting that makes no sense: {error!r}", "the model is not loaded")]
    faults = [fault for find in _FINDERS for fault in find(facts)]
    return facts.describe(), faults


class _Facts:
    """What a small conversation becomes."""

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate, config: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.thinks = template.thinks
        systems = (Message("system", "SYSTEM-1"), Message("system", "SYSTEM-2"))
        question = Message("user", "QUESTION")
        self.prompt = template.render([question], think=True)
        history = [question, Message("assistant", "ANSWER"), Message("user", "AGAIN")]
        self.history = template.render(history, think=True).text
        try:
            self.with_systems = template.render([*systems, question], think=True).text
        except BadCheckpoint:  # some templates take one system message, others none
            self.with_systems = self.prompt.text
        self.token_ids = tokenizer.encode(self.prompt.text)

    @property
    def bos(self) -> str | None:
        return self.tokenizer.special_token("bos_token")

    @property
    def is_r1(self) -> bool:
        return self.tokenizer.has_token(_ASSISTANT)

    @property
    def markers(self) -> list[str]:
        return list(dict.fromkeys(_MARKER.findall(self.history)))

    @property
    def answer_end(self) -> str | None:
        """The first marker behind the model's answer in the history."""
        _, _, rest = self.history.partition("ANSWER")
        match = _MARKER.search(rest.partition("AGAIN")[0])
        return match[0] if match else None

    def token_id(self, text: str) -> int | str:
        """Return the token that *text* is, or that it is several."""
        token_ids = self.tokenizer.encode(text)
        return token_ids[0] if len(token_ids) == 1 else "no token"

    def family(self) -> str | None:
        """Whose template it is, by what it makes and not by its name; None for an unknown one."""
        text = self.prompt.text
        if f"{_USER}QUESTION{_ASSISTANT}" in text:
            if text.endswith(f"{THINK_START}\n"):
                return "R1's template since February 2025"
            if text.endswith(THINK_START):
                return "V3.1's template"
            joined = "SYSTEM-1" in self.with_systems and "SYSTEM-2" in self.with_systems
            return "R1-0528's template" if joined else "R1's template of January 2025"
        if "<|im_start|>" in text:
            return "ChatML"
        return "Llama 3's template" if "<|start_header_id|>" in text else None

    def describe(self) -> str:
        thought = "the template opens the thought" if self.prompt.in_thought else "the model opens its thought itself"
        parts = [self.family() or "a template of its own", thought if self.thinks else "no thought tags"]
        if self.answer_end is not None:
            parts.append(f"answers end with {self.answer_end}")
        if config_changes(self.config):
            parts.append("YaRN's attention factor set to 1.0, as its config asks")
        return "; ".join(parts)


def _unknown_family(facts: _Facts) -> Iterator[Fault]:
    if facts.prompt.text.rstrip().endswith("QUESTION"):
        yield "warn", "there is no chat template", "the model is not told where a question ends and its answer begins"
    elif facts.family() is None and not any(_foreign_template(facts)):
        yield "warn", "the chat template is of an unknown family", "r1mac was not tried with it"


def _foreign_template(facts: _Facts) -> Iterator[Fault]:
    family = facts.family()
    if facts.is_r1 and family in {"ChatML", "Llama 3's template"}:
        yield "fail", f"the template is {family}, and the tokenizer is R1's", "the answers are empty or wrong"
        return
    for marker in facts.markers:
        if not facts.tokenizer.has_token(marker):
            yield (
                "fail",
                f"the template writes {marker!r}, which is no token of this tokenizer",
                "the model reads it as ordinary text, and answers beside the question",
            )


def _wrong_beginning(facts: _Facts) -> Iterator[Fault]:
    if facts.bos is None:
        return
    if not facts.tokenizer.has_token(facts.bos):
        yield "fail", f"the first token, {facts.bos!r}, is none of this tokenizer", "every prompt begins with rubbish"
        return
    (bos_id,) = facts.tokenizer.encode(facts.bos)
    count = next((index for index, token_id in enumerate(facts.token_ids) if token_id != bos_id), 0)
    if count > 1:
        yield "fail", f"a prompt begins with {count} {facts.bos}", "the model has never seen that, and answers worse"
    elif count == 0 and facts.is_r1:
        yield "fail", f"a prompt does not begin with {facts.bos}", "R1 answers nonsense without it"


def _wrong_ids(facts: _Facts) -> Iterator[Fault]:
    known = _R1_IDS.get((str(facts.config.get("model_type")), facts.config.get("vocab_size", 0)))
    if known is None or not facts.is_r1:
        return
    wrong = [
        f"{marker} is {found} and not {wanted}"
        for marker, wanted in zip(_MARKERS, known, strict=True)
        if wanted is not None and (found := facts.token_id(marker)) != wanted
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more of R1's tokens are elsewhere" if len(wrong) > 1 else ""
        yield "fail", f"{wrong[0]}{more}", "the tokenizer is not the one of this model"


def _no_end(facts: _Facts) -> Iterator[Fault]:
    if not facts.tokenizer.end_ids:
        yield "fail", "no token ends an answer", "the model writes on until its context is full"
    elif facts.answer_end is not None:
        token_ids = facts.tokenizer.encode(facts.answer_end)
        if len(token_ids) == 1 and token_ids[0] not in facts.tokenizer.end_ids:
            yield (
                "fail",
                f"the template ends an answer with {facts.answer_end}, and generation does not stop there",
                "the model answers, and then goes on with a conversation of its own",
            )


def _split_tags(facts: _Facts) -> Iterator[Fault]:
    if facts.is_r1 and not facts.thinks:
        yield (
            "warn",
            f"{THINK_START} and {THINK_END} are no tokens of their own",
            "--no-think is only a wish, and the model may think less well than its makers measured",
        )


def _too_many_tokens(facts: _Facts) -> Iterator[Fault]:
    vocab_size = facts.config.get("vocab_size", facts.tokenizer.vocab_size)
    if facts.tokenizer.vocab_size > vocab_size:
        yield (
            "fail",
            f"the tokenizer has {facts.tokenizer.vocab_size} tokens and the model {vocab_size}",
            "the model is not loaded like this",
        )


_FINDERS = (
    _unknown_family,
    _foreign_template,
    _wrong_beginning,
    _wrong_ids,
    _no_end,
    _split_tags,
    _too_many_tokens,
)
