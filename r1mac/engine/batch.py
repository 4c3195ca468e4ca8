"""Several replies at once, one token of each at a step, by mlx-lm's BatchGenerator."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.constraint import Constraint
from r1mac.engine.control import Control
from r1mac.engine.events import Event, FinishReason, Notice
from r1mac.engine.guidance import Guide
from r1mac.engine.joining import JoiningSteps
from r1mac.engine.kept.held_prefixes import HeldPrefixes
from r1mac.engine.kept.held_rows import HeldRow, hold_row
from r1mac.engine.logprobs import chosen_token
from r1mac.engine.loops import Loop
from r1mac.engine.prefix import shared_prefix
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.reply import Reply, begin_reply
from r1mac.engine.request import GenerateRequest
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import R1MacError

# The first step of a prompt beside replies that are being written: each makes them wait.
_FIRST_JOINING_TOKENS = 32
_LEAST_STEP_TOKENS = 4
# A shorter prompt is read again as fast as its cache is copied.
_LEAST_KEPT_TOKENS = 64


class Batch:
    """Replies that are written side by side. Lives on the thread that loaded the model.

    Each takes as much memory for its cache as the longest of them, which the plan counts: whole contexts for all rows,
    and a copy. Rows of a batch share nothing: the text of a reply does not depend on its neighbours, but for the last
    digits of what is computed.
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
        kept_prompts_bytes: int = 0,
    ) -> None:
        """Make a batch of no replies.

        Args:
            model: the model.
            tokenizer: its own.
            template: its own.
            parallel: how many replies are written at once.
            context_tokens: the longest conversation that memory was planned for.
            prefill_step_tokens: prompt tokens read at once, of all prompts together.
            kept_prompts_bytes: the most to keep in memory of prompts that were read, for those that begin alike.
        """
        self.slots = parallel
        self._tokenizer = tokenizer
        self._template = template
        self._context_tokens = context_tokens
        self._prefill_step_tokens = prefill_step_tokens
        self._generator = mlx_lm_api.batch_generator(model, most_rows=parallel)
        self._joining = JoiningSteps(first_tokens=_FIRST_JOINING_TOKENS, most_tokens=prefill_step_tokens)
        self._kept: HeldPrefixes[HeldRow] = HeldPrefixes(kept_prompts_bytes)
        self._rows: dict[int, _Row] = {}
        self._tickets = itertools.count()

    def close(self) -> None:
        """Drop whatever is running."""
        for row in list(self._rows.values()):
            self._drop(row)
        self._kept.shrink(0)
        self._generator.close()

    def __len__(self) -> int:
        """Return how many replies are asked for and have not ended."""
        return len(self._rows)

    @property
    def kept_bytes(self) -> int:
        """What the prompts take that are kept."""
        return self._kept.nbytes

    def submit(self, request: GenerateRequest, control: Control | None = None) -> int:
        """Take a request and return its ticket; it waits while as many as may run at once are running.

        Raises:
            DoesNotFit: the prompt alone fills the planned context.
            BadAnswerFormat: no answer can have the format that was asked for.
        """
        reply = begin_reply(request, self._template, self._tokenizer, context_tokens=self._context_tokens)
        row = _Row(next(self._tickets), reply, control or Control(), self._tokenizer)
        held, shared = self._kept.longest(reply.prompt_ids[:-1])
        if held is not None and shared >= _LEAST_KEPT_TOKENS:
            self._kept.take(held, shared, losing_at_most=-1)  # it stays, as the one used last
            row.cache, row.read_ids = held.fork(shared), list(held.token_ids[:shared])
        self._rows[row.ticket] = row
        reply.begin_prefill(len(row.read_ids))
        self._enter(row)
        return row.ticket

    def step(self) -> Iterator[tuple[int, Event | R1MacError]]:
        """Write one token of each reply whose prompt is read, read a step of the others' prompts, and yield events.

        An error ends the reply that it stands for.
        """
        for row in list(self._rows.values()):
            for event in self._mind(row):
                yield row.ticket, event
        if all(row.uid is None for row in self._rows.values()):
            time.sleep(_PAUSE_LOOK_SECONDS if self._rows else 0)
            return
        prompts, tokens = self._next()
        by_uid = {row.uid: row for row in self._rows.values()}
        for prompt in prompts:
            row = by_uid[prompt.uid]
            if not row.reply.decoding and not prompt.end_of_prompt:
                yield row.ticket, row.reply.progress(row.cached_tokens + prompt.progress[0])
        for token in tokens:
            row = by_uid[token.uid]
            try:
                for event in self._take(row, token.token):
                    yield row.ticket, event
            except R1MacError as error:
                self._drop(row)
                yield row.ticket, error

    def _next(self) -> tuple[Any, Any]:
        """Have the generator do a step, in which others are held up no longer than is due."""
        within = [row for row in self._rows.values() if row.uid is not None]
        writing = sum(row.reply.decoding for row in within)
        reading = min(len(within) - writing, self.slots - writing)
        most_tokens = self._prefill_step_tokens
        if writing:
            most_tokens = self._joining.tokens(reading=max(reading, 1))
        self._generator.prefill_step_size = max(most_tokens // max(reading, 1), _LEAST_STEP_TOKENS)
        before = sum(row.read_tokens for row in within)
        started = time.perf_counter()
        prompts, tokens = self._generator.next()
        seconds = time.perf_counter() - started
        by_uid = {row.uid: row for row in within}
        for prompt in prompts:
            by_uid[prompt.uid].read_tokens = prompt.progress[0]
        if writing and not prompts:
            self._joining.wrote(seconds)
        elif writing and not any(prompt.end_of_prompt for prompt in prompts):
            self._joining.read(sum(row.read_tokens for row in within) - before, seconds)
        return prompts, tokens

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
        insertion: str | Loop | None = row.accept(token_id)
        yield from row.accepted()
        if insertion is None:
            if reply.pace():
                yield row.guide.pace()
            insertion = yield from row.guide.after_token()
        if isinstance(insertion, Loop):
            yield from self._end(row, "loop")
        elif row.complete or reply.left_tokens <= 0:
            yield from self._end(row, "stop" if row.complete else reply.full)
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
            logits_processors=[[row.look]] if row.looks else None,
        )
        row.cached_tokens, row.read_tokens = kept, 0
        row.cache, row.read_ids = None, []

    def _leave(self, row: "_Row") -> None:
        """Take a row out of the batch; what it has read stays with it."""
        if row.uid is not None:
            row.cache, row.read_ids = self._generator.remove([row.uid], return_prompt_caches=True)[row.uid]
            row.uid = None

    def _keep(self, row: "_Row") -> None:
        """Keep what a row has read of its prompt; a thought is no part of any later one."""
        prompt_ids = row.reply.prompt_ids
        if row.uid is None or not self._kept.limit_bytes or len(prompt_ids) < _LEAST_KEPT_TOKENS:
            return
        layers, read_ids = self._generator.extract_cache([row.uid])[row.uid]
        tokens = shared_prefix(read_ids, prompt_ids)
        if tokens >= _LEAST_KEPT_TOKENS and layers[0].keys is not None:
            self._kept.put(hold_row(layers, prompt_ids, tokens))

    def _drop(self, row: "_Row") -> None:
        if row.uid is not None:
            self._generator.remove([row.uid])
        del self._rows[row.ticket]

    def _end(self, row: "_Row", reason: FinishReason) -> Iterator[Event]:
        self._keep(row)
        self._drop(row)
        yield from row.reply.flush()
        yield row.reply.finish(reason)


# How long to wait where all replies are paused.
_PAUSE_LOOK_SECONDS = 0.05


class _Row:
    """One reply of a batch.

    The generator computes a token before it hands over the one before it. A row that must know that one first, for
    penalties, a format or probabilities, is shown it by ``look``.

    Attributes:
        uid: its number in the generator; None while it is out.
        cache: what it has read while it is out, with *read_ids*, the tokens.
        cached_tokens: how many tokens were read already when it entered.
        read_tokens: how many were read since.
    """

    def __init__(self, ticket: int, reply: Reply, control: Control, tokenizer: Tokenizer) -> None:
        self.ticket, self.reply, self.control = ticket, reply, control
        self.guide = Guide(reply, tokenizer, control)
        self.uid: int | None = None
        self.cache: Any = None
        self.read_ids: list[int] = []
        self.cached_tokens = self.read_tokens = 0
        self.paused_at = 0.0
        self._tokenizer = tokenizer
        answer_format = reply.request.answer_format
        self._constraint = None if answer_format is None else Constraint(answer_format, tokenizer)
        # What came of the token that was shown last and is still to be handed over.
        self._accepted: tuple[int, str | None, list[Event]] | None = None
        # What tokens are chosen from: the model's own logits, and those that are allowed.
        self._traces: deque[mx.array] = deque()
        self._allowed: mx.array | None = None
        self._error: R1MacError | None = None

    @property
    def looks(self) -> bool:
        """Whether each token has to be known before the next one is chosen."""
        reply = self.reply
        return reply.sampler.needs_history or reply.request.logprobs is not None or self._constraint is not None

    @property
    def complete(self) -> bool:
        """Whether the answer has come to a stop text, or has all that its format allows."""
        reply = self.reply
        constrains = self._constraint is not None and reply.channel == "answer"
        return reply.stopped or (
            constrains and self._constraint is not None and self._constraint.finished(reply.answer_ids)
        )

    def look(self, token_ids: mx.array, logits: mx.array) -> mx.array:
        """See which token was chosen last, and what the next one is chosen from. mlx-lm calls this.

        Args:
            token_ids: those of prompt and reply so far.
            logits: the model's own for the next one, ``[1, vocabulary]``.
        """
        reply = self.reply
        if token_ids.shape[0] > len(reply.prompt_ids) + len(reply.token_ids):
            self.accept(int(token_ids[-1].item()))  # type: ignore[arg-type]
        if reply.request.logprobs is not None:
            self._traces.append(logits[0])
        self._allowed = logits
        if self._constraint is not None and reply.channel == "answer" and not self.complete:
            try:
                self._allowed = self._constraint.mask(logits, reply.answer_ids, may_think=reply.may_open_thought)
            except R1MacError as error:
                # Only this reply is concerned; it ends where the token is handed over.
                self._error = error
        return logits

    def accept(self, token_id: int) -> str | None:
        """Add a token to the reply, unless ``look`` did so already; return the text that is to come in its place."""
        if self._accepted is None or self._accepted[0] != len(self.reply.token_ids):
            ended = token_id in self._tokenizer.end_ids
            insertion = None if ended else self.guide.in_place_of(token_id)
            channel = self.reply.channel
            events: list[Event] = [] if ended or insertion is not None else list(self.reply.take(token_id))
            if self._traces and not ended:
                logits, count = self._traces.popleft(), self.reply.request.logprobs or 0
                if insertion is None:
                    events.append(chosen_token(logits, token_id, count, channel=channel, tokenizer=self._tokenizer))
            self._accepted = (len(self.reply.token_ids), insertion, events)
        return self._accepted[1]

    def accepted(self) -> Iterator[Event]:
        """Yield what came of the token that was added last.

        Raises:
            R1MacError: what the token after it may be cannot be said.
        """
        if self._accepted is not None:
            yield from self._accepted[2]
        self._accepted = None
        if self._error is not None:
            raise self._error

    def sampler(self) -> Callable[[mx.array], mx.array]:
        """Return what chooses the tokens that follow those that the reply has."""
        self._traces.clear()
        self._accepted = None
        reply = self.reply
        if reply.sampler.is_greedy and not reply.request.sampling.logit_bias and not self.looks:
            return _likeliest
        positions = itertools.count(len(reply.token_ids))
        if self.looks:
            # mlx-lm hands over probabilities; penalties are made for what the model said.
            return lambda _: reply.sampler.choose(self._logits(), next(positions), reply.token_ids)
        return lambda logits: reply.sampler.choose(logits, next(positions))

    def _logits(self) -> mx.array:
        assert self._allowed is not None
        return self._allowed


def _likeliest(logits: mx.array) -> mx.array:
    """Choose for all rows at once: mlx-lm asks once where all have the same sampler."""
    return mx.argmax(logits, axis=-1)
