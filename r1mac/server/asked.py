"""What a client asks, in no program's dialect."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from r1mac.engine.request import AnswerFormat, GenerateRequest, Message


class BadRequest(Exception):
    """A request says something that cannot be meant.

    Attributes:
        problem: one sentence.
        field: what it is about, as the client wrote it, such as ``messages[0].content``.
    """

    def __init__(self, problem: str, *, field: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.field = problem, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request. A field of None means «as the model's defaults and the server's settings have it».

    Attributes:
        model: what the client calls the model; None for the one that is loaded.
        messages: the conversation, without what the server adds.
        raw_prompt: a text to be continued as it stands, in place of *messages*.
        max_tokens: most tokens to write, thought included.
        sampling: what is said of ``engine.request.Sampling``, by its names.
        think: whether to think first.
        think_tokens: most tokens of thought.
        thought: what is sent of it: ``all``, a ``sign`` that there was one, or ``none``.
        stop: texts that end the answer.
        logprobs: how many alternatives to tell for each token.
        answer_format: what the answer must look like.
        tools: the functions that the model may call, as OpenAI describes them.
        must_call: whether the answer is held to calls of them; a name says of which.
        one_call: whether calls after the first are left out.
        stream: whether to send the reply as it is written.
        replies: how many to write.
        tell_usage: whether a stream ends with the counts.
        tell_events: whether notices, pace and progress are sent too.
        context_tokens: how long a conversation the client wants room for; more than there is may be had, if nobody
            chose a context (``server.contexts``).
        keep_loaded_seconds: how long the model is to stay loaded without work after it; infinite for ever, None for as
            long as the server was told to.
    """

    model: str | None = None
    messages: tuple[Message, ...] = ()
    raw_prompt: str | None = None
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    think: bool | None = None
    think_tokens: int | None = None
    thought: Literal["all", "sign", "none"] = "all"
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    answer_format: AnswerFormat | None = None
    tools: tuple[dict[str, Any], ...] = ()
    must_call: bool | str = False
    one_call: bool = False
    stream: bool = False
    replies: int = 1
    tell_usage: bool = False
    tell_events: bool = False
    context_tokens: int | None = None
    keep_loaded_seconds: float | None = None

    def request(self, defaults: GenerateRequest) -> GenerateRequest:
        """Return what the engine is asked, *defaults* standing for what was not said.

        Raises:
            BadRequest: a value of the sampling is outside what it can mean, or functions are offered to an answer
                whose format leaves no room for calling one.
        """
        if self.tools and self.answer_format is not None:
            raise BadRequest("an answer that is held to a format cannot call functions: ask for one or the other")
        try:
            sampling = replace(defaults.sampling, **self.sampling)
        except ValueError as error:
            raise BadRequest(str(error), field=str(error).partition(" ")[0]) from error
        return replace(
            defaults,
            messages=self.messages,
            raw_prompt=self.raw_prompt,
            max_tokens=self.max_tokens or defaults.max_tokens,
            sampling=sampling,
            think=defaults.think if self.think is None else self.think,
            think_tokens=self.think_tokens,
            stop=self.stop,
            logprobs=self.logprobs,
            answer_format=self.answer_format,
            tools=tuple(json.dumps(tool, ensure_ascii=False) for tool in self.tools),
            must_call=self.must_call,
        )
