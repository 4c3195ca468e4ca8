"""OpenAI's older Completions: a text that is continued as it stands.

https://platform.openai.com/docs/api-reference/completions. No template is put around the prompt and no thought is told
from the answer: all that the model writes is the text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from r1mac.engine.events import ChosenToken, Event, Finished, Notice, Pace, PrefillProgress, TextDelta
from r1mac.errors import R1MacError
from r1mac.server import openai_asked
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.fields import Fields
from r1mac.server.gathered import FINISH_REASONS, gather
from r1mac.server.openai_chat import DONE, FINGERPRINT, ending, extra, finite_logprob, usage
from r1mac.server.sse import Chunk
from r1mac.server.wire_errors import openai_body, problem_of


def parse(body: Mapping[str, Any]) -> Asked:
    """Return what a request asks.

    Raises:
        BadRequest: a field has a wrong type or a value that cannot be meant.
    """
    fields = Fields(body)
    for name in ("echo", "suffix"):
        if fields.values.get(name):
            raise fields.bad(name, "is not supported: the text that comes is what the model writes behind the prompt")
    replies = openai_asked.replies(fields)
    best_of = fields.integer("best_of", least=1)
    if best_of is not None and best_of != replies:
        raise fields.bad("best_of", "is not supported: ask for several with «n», and choose")
    options = fields.inner("stream_options")
    extras = fields.inner("r1mac")
    return Asked(
        model=fields.text("model") or None,
        raw_prompt=_prompt(fields),
        max_tokens=openai_asked.max_tokens(fields, "max_tokens"),
        sampling=openai_asked.sampling(fields),
        think=False,
        stop=openai_asked.stop(fields),
        logprobs=fields.integer("logprobs", least=0, most=openai_asked.MOST_LOGPROBS),
        answer_format=openai_asked.answer_format(fields.inner("response_format"), holder="json_schema"),
        stream=fields.boolean("stream") or False,
        replies=replies,
        tell_usage=bool(options and options.boolean("include_usage")),
        tell_events=bool(extras and extras.boolean("events")),
    )


def _prompt(fields: Fields) -> str:
    value = fields.values.get("prompt")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        missing = "is missing" if value is None else "must be one string: neither several prompts nor tokens are taken"
        raise fields.bad("prompt", missing)
    if not value:
        raise BadRequest("prompt is empty, and a model needs at least one token to go on from", field="prompt")
    return value


class Writer:
    """Says one text, or several that continue the same prompt."""

    def __init__(self, reply_id: str, asked: Asked, *, model: str, created_at_s: int) -> None:
        self._asked = asked
        self._head = {
            "id": reply_id,
            "object": "text_completion",
            "created": created_at_s,
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._texts = [_Text() for _ in range(asked.replies)]

    def begin(self) -> Iterator[Chunk]:
        """Yield nothing: the first chunk has the first text."""
        return iter(())

    def event(self, event: Event, index: int = 0) -> Iterator[Chunk]:
        """Yield what an event of the text *index* is in the stream."""
        text = self._texts[index]
        match event:
            case TextDelta():
                yield self._choice(index, event.text)
            case ChosenToken():
                text.tokens.append(event)
            case Finished():
                text.finished = event
                extras = {"r1mac": ending(event)} if self._asked.tell_events else {}
                yield self._choice(index, "", reason=FINISH_REASONS[event.reason], **extras)
                yield from self._end()
            case Notice() | Pace() | PrefillProgress() if self._asked.tell_events:
                yield self._chunk([], r1mac=extra(event, index))

    def failed(self, error: R1MacError) -> Iterator[Chunk]:
        """Yield the error in place of what would have come."""
        yield Chunk(openai_body(problem_of(error)))
        yield DONE

    def whole(self, *replies: Sequence[Event]) -> dict[str, Any]:
        """Return the text, or all texts."""
        gathered = [gather(events) for events in replies]
        choices = [
            {
                "index": index,
                "text": one.answer,
                "logprobs": self._logprobs(self._texts[index], one.tokens),
                "finish_reason": FINISH_REASONS[one.finished.reason],
            }
            for index, one in enumerate(gathered)
        ]
        body = {**self._head, "choices": choices, "usage": usage([one.finished.stats for one in gathered])}
        if self._asked.tell_events:
            body["r1mac"] = {"replies": [ending(one.finished, one.notices) for one in gathered]}
        return body

    def _end(self) -> Iterator[Chunk]:
        ended = [text.finished.stats for text in self._texts if text.finished]
        if len(ended) == len(self._texts):
            if self._asked.tell_usage:
                yield self._chunk([], usage=usage(ended))
            yield DONE

    def _choice(self, index: int, said: str, *, reason: str | None = None, **extras: Any) -> Chunk:
        text = self._texts[index]
        tokens, text.tokens = text.tokens, []
        logprobs = self._logprobs(text, tokens) if tokens else None
        return self._chunk([{"index": index, "text": said, "logprobs": logprobs, "finish_reason": reason}], **extras)

    def _chunk(self, choices: list[dict[str, Any]], **extras: Any) -> Chunk:
        usage_field = {"usage": None} if self._asked.tell_usage else {}
        return Chunk({**self._head, "choices": choices, **usage_field, **extras})

    def _logprobs(self, text: "_Text", tokens: Iterable[ChosenToken]) -> dict[str, Any] | None:
        """Return the tokens in four lists. Of two that look alike the likelier counts: texts are the names."""
        if self._asked.logprobs is None:
            return None
        said: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            said["tokens"].append(token.chosen.text)
            said["token_logprobs"].append(finite_logprob(token.chosen.logprob))
            said["top_logprobs"].append(
                {other.text: finite_logprob(other.logprob) for other in reversed(token.likeliest)}
            )
            said["text_offset"].append(text.length)
            text.length += len(token.chosen.text)
        return said


class _Text:
    """Where one of the texts is; *length* counts the characters of the tokens that were told."""

    def __init__(self) -> None:
        self.length = 0
        self.finished: Finished | None = None
        self.tokens: list[ChosenToken] = []
