"""What is done with a thought while it runs: the wishes of the person, and what its limits ask for."""

from collections.abc import Generator

from r1mac.engine.control import Control, Wish
from r1mac.engine.events import Event, Notice, Pace
from r1mac.engine.landing import (
    Budget,
    Landing,
    closing_text,
    continuing_text,
    hint_text,
    longest_closing_texts,
    loop_landing,
    wished_landing,
)
from r1mac.engine.loops import ANSWER_PATIENCE, Loop, LoopDetector
from r1mac.engine.reply import Reply
from r1mac.engine.think import THINK_END
from r1mac.engine.tokenizer import Tokenizer


class Guide:
    """Says what is to be put into one reply, and when. It computes nothing."""

    def __init__(self, reply: Reply, tokenizer: Tokenizer, control: Control) -> None:
        self._reply = reply
        self._control = control
        self._close_id = tokenizer.token_id(THINK_END)
        self._loops, self._looks_at = _detector(reply), reply.channel
        # How often the thought is to go on where it would close.
        self._more = 0
        self._budget = Budget(
            context_tokens=len(reply.prompt_ids) + reply.room_tokens,
            prompt_tokens=len(reply.prompt_ids),
            max_tokens=reply.request.max_tokens,
            think_tokens=reply.request.think_tokens,
            think_seconds=reply.request.think_seconds,
            closing_tokens=max(len(tokenizer.encode(text)) for text in longest_closing_texts()),
        )

    def pace(self) -> Pace:
        """Return how far the reply is, and how much of thought or answer may follow."""
        reply = self._reply
        left_tokens = reply.left_tokens
        if reply.channel == "think":
            left_tokens = self._budget.left_tokens(
                reply.think_tokens, len(reply.token_ids), reply.decode_seconds, reply.tokens_per_s
            )
        return Pace(
            written_tokens=len(reply.token_ids),
            think_tokens=reply.think_tokens,
            tokens_per_s=reply.tokens_per_s,
            left_tokens=left_tokens,
        )

    @property
    def answer_tokens(self) -> int:
        """The room that is kept for the answer, the words that close the thought included."""
        return self._budget.answer_tokens + self._budget.closing_tokens

    def in_place_of(self, token_id: int) -> str | None:
        """Return the text that is to come instead of a token that the model chose, or None."""
        if self._more and token_id == self._close_id and self._reply.channel == "think":
            self._more -= 1
            return continuing_text(self._reply.tail)
        return None

    @property
    def wants_entropy(self) -> bool:
        """Whether it would like to know how sure the model is of its tokens."""
        return self._loops.wants_entropy

    def after_token(self, entropy_nats: float | None = None) -> Generator[Event, None, str | Loop | None]:
        """Return what is to follow the reply's last token, or None; yield what the person should know.

        That is text to be put in, or the loop that the answer is in. *entropy_nats* tells how sure the model was of
        the token, if that is known.
        """
        reply = self._reply
        if reply.channel != self._looks_at:
            self._loops, self._looks_at = _detector(reply), reply.channel
        loop = self._loops.feed(reply.token_ids[-1], entropy_nats)
        if (wish := self._control.take()) is not None:
            return (yield from self._carry_out(wish))
        if loop is not None and reply.channel != "think":
            yield Notice(kind="loop", text=f"{loop.text}; it ends here")
        if reply.channel != "think":
            return loop
        if loop is not None:
            return (yield from self.land(loop_landing(reply.think_tokens, loop.text)))
        due = self._budget.due(reply.think_tokens, len(reply.token_ids), reply.decode_seconds, reply.tokens_per_s)
        return None if due is None else (yield from self.land(due))

    def land(self, landing: Landing) -> Generator[Event, None, str]:
        """Return the text that closes the thought, and tell why it does."""
        yield Notice(kind="loop" if landing.cause == "loop" else "landing", text=landing.text)
        return closing_text(landing.cause, self._reply.tail)

    def _carry_out(self, wish: Wish) -> Generator[Event, None, str | None]:
        if self._reply.channel != "think":
            yield Notice(kind="steering", text="there is no thought to steer: the answer is being written")
            return None
        match wish.kind:
            case "answer":
                return (yield from self.land(wished_landing(self._reply.think_tokens)))
            case "hint":
                yield Notice(kind="steering", text="the hint is in the thought")
                return hint_text(wish.text, self._reply.tail)
            case "more":
                self._more += self._close_id is not None
                yield Notice(
                    kind="steering",
                    text="the thought will go on once more where it would end"
                    if self._close_id is not None
                    else "this model's thoughts cannot be made longer",
                )
                return None


def _detector(reply: Reply) -> LoopDetector:
    if reply.channel == "think":
        return LoopDetector()
    return LoopDetector(subject="the answer", patience=ANSWER_PATIENCE)
