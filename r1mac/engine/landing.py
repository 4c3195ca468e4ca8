"""When a thought must be closed so that an answer still fits, and the words that are put into one.

Peers stop at the limit in the middle of a thought and deliver nothing. Here the limit is known from the start: room for
an answer is kept, and the thought is closed before that room is touched.

How the words were chosen, from published practice:

* A bare closing tag is worse than no thought at all. llama.cpp's author measured it on HumanEval with a Qwen3 of 9B
  parameters and a budget of 1,000 tokens: 94 % with free thoughts, 88 % without any, 78 % with thoughts cut off, and
  89 % when a sentence («... thinking budget exceeded, let's answer now.») stands before the tag. Qwen3's own budget
  does the same («Considering the limited time by the user, I have to give the solution based on the thinking directly
  now.»). So a sentence in the first person comes first, then the tag on a line of its own, as R1 writes it.
* The sentence names the final answer: s1 («Simple test-time scaling») ends a thought with its delimiter and, where
  that is wanted, «Final Answer:», to get the best answer that there is so far.
* A thought in Chinese is closed in Chinese; a sentence in English could turn the answer's language.
* To make a thought longer s1 puts «Wait» in place of its end, once for each time that it should go on.
"""

# ruff: noqa: RUF001 (Chinese has its own punctuation)

import re
from dataclasses import dataclass
from typing import Literal

from r1mac.engine.think import THINK_END, THINK_START
from r1mac.units import format_about

# R1's answers run from some hundred tokens to about 2,000. A short reply keeps a quarter for it: thoughts are several
# times as long as the answers that they lead to.
ANSWER_TOKENS = 2_048
_ANSWER_SHARE = 4

Cause = Literal["tokens", "seconds", "context", "length", "memory", "loop", "wish"]

_CLOSINGS = {
    "tokens": ("I have thought long enough.", "我已经思考得够久了，"),
    "seconds": ("My time for thinking is up.", "思考时间已经用完，"),
    "context": ("There is no room left for thinking.", "已经没有继续思考的空间了，"),
    "loop": ("I am going round in circles.", "我在原地打转，"),
    "wish": ("The user wants the answer now.", "用户现在就需要答案，"),
}
_ANSWERING = ("I will now give the final answer, based on the thinking so far.", "现在根据以上思考给出最终答案。")
_WAIT = ("Wait", "等等")
_HINTS = ("Wait, the user adds: {hint}\nLet me take that into account.", "等等，用户补充说：{hint}\n让我考虑这一点。")
# Chinese characters, and what a hint must not have: the tags of thoughts, and R1's own tokens.
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_TAGS = re.compile(rf"{THINK_START}|{THINK_END}|<｜[^<>]*｜>")
TAIL_CHARACTERS = 400
_CHINESE_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """The thought is to be closed now: why, and one sentence for the person."""

    cause: Cause
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long the thought of one reply may be.

    Attributes:
        context_tokens: what memory is planned for, prompt and reply together.
        prompt_tokens: of it, the prompt's.
        max_tokens: most tokens to write, thought included.
        think_tokens: most tokens of thought, if somebody said so.
        think_seconds: most seconds of thought, if somebody said so; reading the prompt and pauses do not count.
        closing_tokens: what the longest of ``longest_closing_texts`` takes.
    """

    context_tokens: int
    prompt_tokens: int
    max_tokens: int
    think_tokens: int | None = None
    think_seconds: float | None = None
    closing_tokens: int = 32

    @property
    def reply_tokens(self) -> int:
        """Most tokens of thought and answer together."""
        return max(0, min(self.max_tokens, self.context_tokens - self.prompt_tokens))

    @property
    def answer_tokens(self) -> int:
        """The room that is kept for the answer, the words that close the thought not counted."""
        return min(ANSWER_TOKENS, self.reply_tokens // _ANSWER_SHARE)

    def due(
        self, think_tokens: int, written_tokens: int, elapsed_seconds: float, tokens_per_s: float | None
    ) -> Landing | None:
        """Return the landing that is due before the next token of an open thought, or None.

        Args:
            think_tokens: of the thought so far.
            written_tokens: of the reply so far.
            elapsed_seconds: since the thought began, pauses and prompt not counted.
            tokens_per_s: of late; None while that is not known.
        """
        if self.think_tokens is not None and think_tokens >= self.think_tokens:
            said = f"as --think-tokens {self.think_tokens} says"
            return Landing(cause="tokens", text=_closed(think_tokens, said))
        if self.think_seconds is not None and self._seconds_tokens(elapsed_seconds, tokens_per_s) <= 0:
            said = f"since its {format_about(self.think_seconds)} are over"
            return Landing(cause="seconds", text=_closed(think_tokens, said))
        if self._lands and written_tokens >= self._thought_end:
            if self.max_tokens < self.context_tokens - self.prompt_tokens:
                said = f"since the reply may have {self.max_tokens:,}"
                return Landing(cause="length", text=_closed(think_tokens, said))
            said = f"since the context of {self.context_tokens:,} is nearly full"
            return Landing(cause="context", text=_closed(think_tokens, said))
        return None

    def left_tokens(
        self, think_tokens: int, written_tokens: int, elapsed_seconds: float, tokens_per_s: float | None
    ) -> int:
        """Return how many tokens an open thought may still have, as far as is known; arguments as of ``due``."""
        left: float = (self._thought_end if self._lands else self.reply_tokens) - written_tokens
        if self.think_tokens is not None:
            left = min(left, self.think_tokens - think_tokens)
        if self.think_seconds is not None:
            left = min(left, self._seconds_tokens(elapsed_seconds, tokens_per_s))
        return max(0, int(left))

    @property
    def _thought_end(self) -> int:
        return self.reply_tokens - self.answer_tokens - self.closing_tokens

    @property
    def _lands(self) -> bool:
        """Whether the reply is long enough for a landing: else the closing words would take what the answer has."""
        return self.closing_tokens <= self.answer_tokens

    def _seconds_tokens(self, elapsed_seconds: float, tokens_per_s: float | None) -> float:
        """Return how many tokens the time still gives: less than one is none, since it would be late."""
        assert self.think_seconds is not None
        left_seconds = self.think_seconds - elapsed_seconds
        if left_seconds <= 0:
            return 0
        if not tokens_per_s:
            return self.reply_tokens
        return int(left_seconds * tokens_per_s)


def memory_landing(think_tokens: int, said: str) -> Landing:
    """Return the landing that the governor asks for; *said* is its own sentence with the numbers."""
    return Landing(
        cause="memory", text=f"{said}; the thought was closed after {_tokens(think_tokens)}, the answer follows"
    )


def loop_landing(think_tokens: int, said: str) -> Landing:
    """Return the landing of a thought that goes in circles; *said* tells how."""
    return Landing(cause="loop", text=f"{said}; it was closed after {_tokens(think_tokens)}, the answer follows")


def wished_landing(think_tokens: int) -> Landing:
    """Return the landing that the person asks for."""
    return Landing(cause="wish", text=f"closing the thought after {_tokens(think_tokens)}; the answer follows")


def closing_text(cause: Cause, tail: str) -> str:
    """Return the words that close a thought, so that the answer begins.

    Args:
        cause: why it is closed.
        tail: the end of the thought, some hundred characters.
    """
    kind = {"length": "context", "memory": "context"}.get(cause, cause)
    language = _language(tail)
    reason, answering = _CLOSINGS[kind][language], _ANSWERING[language]
    return f"{_paragraph(tail)}{reason}{'' if language else ' '}{answering}\n{THINK_END}\n\n"


def longest_closing_texts() -> tuple[str, ...]:
    """Return every text that ``closing_text`` may give at its longest, so that their tokens can be counted once."""
    tails = ("thinking", "思考")
    causes: tuple[Cause, ...] = ("tokens", "seconds", "context", "loop", "wish")
    return tuple(closing_text(cause, tail) for cause in causes for tail in tails)


def continuing_text(tail: str) -> str:
    """Return what comes in place of a thought's end so that it goes on; the arguments are those of ``closing_text``."""
    return f"{_paragraph(tail)}{_WAIT[_language(tail)]}"


def hint_text(hint: str, tail: str) -> str:
    """Return the words that bring a person's *hint* into a thought, as one paragraph without tags of its own."""
    hint = re.sub(r"\s*\n\s*", "\n", _TAGS.sub(" ", hint)).strip()
    return f"{_paragraph(tail)}{_HINTS[_language(hint or tail)].format(hint=hint)}\n\n"


def _closed(think_tokens: int, said: str) -> str:
    return f"the thought was closed after {_tokens(think_tokens)}, {said}; the answer follows"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _paragraph(tail: str) -> str:
    """Return the line breaks that begin a new paragraph after *tail*."""
    if not tail.strip():
        return ""
    return "\n" * max(0, 2 - (len(tail) - len(tail.rstrip("\n"))))


def _language(text: str) -> int:
    """Return 1 for a text in Chinese, else 0. A formula among Chinese words does not make them English."""
    text = re.sub(r"\s", "", text[-TAIL_CHARACTERS:])
    return int(bool(text) and len(_CHINESE.findall(text)) >= _CHINESE_SHARE * len(text))
