"""What is done with a thought while it runs: the wishes of the person, and what its limits ask for."""

from collections.abc import Generator

from r1mac.engine.control import Control, Wish
from r1mac.engine.events import Event, Notice
from r1mac.engine.reply import Reply
from r1mac.engine.think import THINK_END
from r1mac.engine.tokenizer import Tokenizer

_CLOSE = f"\n{THINK_END}\n\n"
_GO_ON = "\n\nWait"


class Guide:
    """Says what is to be put into one reply, and when. It computes nothing."""

    def __init__(self, reply: Reply, tokenizer: Tokenizer, control: Control) -> None:
        self._reply = reply
        self._control = control
        self._close_id = tokenizer.token_id(THINK_END)
        # How often the thought is to go on where it would close.
        self._more = 0

    def in_place_of(self, token_id: int) -> str | None:
        """Return the text that is to come instead of a token that the model chose, or None."""
        if self._more and token_id == self._close_id and self._reply.channel == "think":
            self._more -= 1
            return _GO_ON
        return None

    def after_token(self) -> Generator[Event, None, str | None]:
        """Return the text that is to follow the reply's last token, or None; yield what the person should know."""
        wish = self._control.take()
        return None if wish is None else (yield from self._carry_out(wish))

    def _carry_out(self, wish: Wish) -> Generator[Event, None, str | None]:
        if self._reply.channel != "think":
            yield Notice(kind="steering", text="there is no thought to steer: the answer is being written")
            return None
        match wish.kind:
            case "answer":
                yield Notice(kind="steering", text="closing the thought; the answer follows")
                return _CLOSE
            case "hint":
                yield Notice(kind="steering", text="the hint is in the thought")
                return f"\n\n{wish.text.strip()}\n\n"
            case "more":
                self._more += self._close_id is not None
                yield Notice(
                    kind="steering",
                    text="the thought will go on once more where it would end"
                    if self._close_id is not None
                    else "this model's thoughts cannot be made longer",
                )
                return None
