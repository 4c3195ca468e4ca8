"""Several replies at once, one token of each at a step, by mlx-lm's BatchGenerator."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.control import Control
from r1mac.engine.events import Event, FinishReason, Notice
from r1mac.engine.guidance import Guide
from r1mac.engine.loops import Loop
from r1mac.engine.prefix import shared_prefix
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.reply import Reply, begin_reply
from r1mac.engine.request import GenerateRequest
from r1mac.engine.tokenizer import Tokenizer

# While replies are being written, a prompt is read in steps as short as this: each of them makes the others wait.
_STEP_AMONG_OTHERS_TOKENS = 128


class Batch:
    """Replies that are written side by side. Lives on the thread that loaded the model.

    Each takes as much memory for its cache as the longest of them. Rows of a batch share nothing: the text of a reply
    does not depend on its neighbours, but for the last digits of what is computed.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        *,
        parallel: int,
        context_tokens: int,
        prefill_step_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context_tokens = context_tokens
        self._prefill_step_tokens = prefill_step_tokens
        self._generator = mlx_lm_api.batch_generator(model, most_rows=parallel)
        self._rows: dict[int, _Row] = {}
        self._tickets = itertools.count()

    def close(self) -> None:
        """Drop whatever is running."""
        for row in list(self._rows.values()):
            self._drop(row)
        self._generator.close()

    def __len__(self) -> int:
        """Return how many replies are asked for and have not ended."""
        return len(self._rows)

    def submit(self, request: GenerateRequest, control: Control | None = None) -> int:
        """Take a request and return its ticket; it waits while as many as may run at once are running.

        Raises:
            DoesNotFit: the prompt alone fills the planned context.
        """
        reply = begin_reply(request, self._template, self._tokenizer, context_tokens=self._context_tokens)
        control = control or Control()
        row = _Row(next(self._tickets), reply, control, Guide(reply, self._tokenizer, control))
        self._rows[row.ticket] = row
        self._enter(row)
        return row.ticket

    def step(self) -> Iterator[tuple[int, Event]]:
        """Write one token of each reply whose prompt is read, read a step of the others' prompts, and yield events."""
        for row in list(self._rows.values()):
            for event in self._mind(row):
                yield row.ticket, event
        writing = any(row.reply.decoding and row.uid is not None for row in self._rows.values())
        step_tokens = (
            min(self._prefill_step_tokens, _STEP_AMONG_OTHERS_TOKENS) if writing else self._prefill_step_tokens
        )
        self._generator.prefill_step_size = step_tokens
        prompts, tokens = self._generator.next()
        by_uid = {row.uid: row for row in self._rows.values()}
        for prompt in prompts:
            row = by_uid[prompt.uid]
            if not row.reply.decoding and not prompt.end_of_prompt:
                yield row.ticket, row.reply.progress(prompt.progress[0])
        for token in tokens:
            row = by_uid[token.uid]
            for event in self._take(row, token.token):
                yield row.ticket, event

    def _mind(self, row: "_Row") -> Iterator[Event]:
        """Do what was asked of a row since the last step."""
        if row.control.cancelled:
            yield from self._end(row, "cancelled")
        elif row.control.paused and row.uid is not None:
            self._leave(row)
            row.paused_at = time.perf_counter()
            yield Notice(kind="pause", text="paused")
        elif not row.control.paused and row.uid is None:
            row.reply.leave_out(time.perf_counter() - row.paused_at)
            self._enter(row)
            yield Notice(kind="pause", text="going on")

    def _take(self, row: "_Row", token_id: int) -> Iterator[Event]:
        """Add a token to a row, and do what follows from it."""
        reply = row.reply
        if not reply.decoding:
            yield reply.begin_decode()
        if token_id in self._tokenizer.end_ids:
            reply.ended = True
            yield from self._end(row, "stop")
            return
        insertion: str | Loop | None = row.guide.in_place_of(token_id)
        if insertion is None:
            yield from reply.take(token_id)
            if reply.pace():
                yield row.guide.pace()
            insertion = yield from row.guide.after_token()
        if isinstance(insertion, Loop):
            yield from self._end(row, "loop")
        elif reply.stopped or reply.left_tokens <= 0:
            yield from self._end(row, "stop" if reply.stopped else reply.full)
        elif insertion is not None:
            self._leave(row)
            yield from reply.put_in(insertion)
            if reply.left_tokens > 0:
                self._enter(row)
            else:
                yield from self._end(row, reply.full)

    def _enter(self, row: "_Row") -> None:
        """Have a row go on after the tokens that it has."""
        token_ids = row.reply.all_ids
        # The last token is read in any case, since its logits are wanted.
        kept = shared_prefix(row.read_ids, token_ids[:-1])
        for layer in row.cache or ():
            layer.trim(len(row.read_ids) - kept)
        (row.uid,) = self._generator.insert(
            [token_ids[kept:]],
            # One more than is wanted: the generator must not end a row by itself.
            max_tokens=[row.reply.left_tokens + 1],
            caches=[row.cache] if row.cache else None,
            all_tokens=[token_ids[:kept]],
            samplers=[row.sampler()],
            logits_processors=[[row.note_history]] if row.reply.sampler.needs_history else None,
        )
        row.cache, row.read_ids = None, []

    def _leave(self, row: "_Row") -> None:
        """Take a row out of the batch; what it has read stays with it."""
        if row.uid is not None:
            row.cache, row.read_ids = self._generator.remove([row.uid], return_prompt_caches=True)[row.uid]
            row.uid = None

    def _drop(self, row: "_Row") -> None:
        if row.uid is not None:
            self._generator.remove([row.uid])
        del self._rows[row.ticket]

    def _end(self, row: "_Row", reason: FinishReason) -> Iterator[Event]:
        self._drop(row)
        yield from row.reply.flush()
        yield row.reply.finish(reason)


class _Row:
    """One reply of a batch.

    Attributes:
        uid: its number in the generator; None while it is out.
        cache: what it has read while it is out, with *read_ids*, the tokens.
    """

    def __init__(self, ticket: int, reply: Reply, control: Control, guide: Guide) -> None:
        self.ticket, self.reply, self.control, self.guide = ticket, reply, control, guide
        self.uid: int | None = None
        self.cache: Any = None
        self.read_ids: list[int] = []
        self.paused_at = 0.0
        self._history: list[int] = []

    def note_history(self, token_ids: mx.array, logits: mx.array) -> mx.array:
        """Keep the tokens before the one that is chosen next. mlx-lm calls this before the sampler."""
        self._history = token_ids.tolist()[len(self.reply.prompt_ids) :]  # type: ignore[index, assignment]
        return logits

    def sampler(self) -> Callable[[mx.array], mx.array]:
        """Return what chooses the tokens that follow those that the reply has."""
        positions = itertools.count(len(self.reply.token_ids))
        return lambda logits: self.reply.sampler.choose(logits, next(positions), self._history)
