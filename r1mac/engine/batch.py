"""Several replies at once, one token of each at a step, by mlx-lm's BatchGenerator."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.batch_row import Row
from r1mac.engine.control import Control
from r1mac.engine.events import Event, FinishReason, Notice
from r1mac.engine.joining import JoiningSteps
from r1mac.engine.kept.held_prefixes import HeldPrefixes
from r1mac.engine.kept.held_rows import HeldRow, hold_row
from r1mac.engine.loops import Loop
from r1mac.engine.prefix import shared_prefix
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.reply import begin_reply
from r1mac.engine.request import GenerateRequest
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import R1MacError

# The first step of a prompt beside replies that are being written: each makes them wait.
_FIRST_JOINING_TOKENS = 32
_LEAST_STEP_TOKENS = 4
# How long to wait where all replies are paused.
_PAUSE_LOOK_SECONDS = 0.05
# Fewer tokens are read again as fast as their cache is copied.
_LEAST_KEPT_TOKENS = 16


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
        self._rows: dict[int, Row] = {}
        self._tickets = itertools.count()

    def close(self) -> None:
        """Drop whatever is running."""
        for row in list(self._rows.values()):
            self._drop(row)
        self._kept.shrink(0)
        self._generator.close()

    def refit(self, *, context_tokens: int, prefill_step_tokens: int, kept_prompts_bytes: int) -> None:
        """Go on under another memory plan, with no reply at work; kept prompts stay as far as there is memory."""
        assert not self._rows
        self._context_tokens, self._prefill_step_tokens = context_tokens, prefill_step_tokens
        self._joining = JoiningSteps(first_tokens=_FIRST_JOINING_TOKENS, most_tokens=prefill_step_tokens)
        self._kept.limit(kept_prompts_bytes)

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
        row = Row(next(self._tickets), reply, control or Control(), self._tokenizer)
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

    def _mind(self, row: Row) -> Iterator[Event]:
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

    def _take(self, row: Row, token_id: int) -> Iterator[Event]:
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

    def _enter(self, row: Row) -> None:
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

    def _leave(self, row: Row) -> None:
        """Take a row out of the batch; what it has read stays with it."""
        if row.uid is not None:
            row.cache, row.read_ids = self._generator.remove([row.uid], return_prompt_caches=True)[row.uid]
            row.uid = None

    def _keep(self, row: Row) -> None:
        """Keep what a row has read of its prompt; a thought is no part of any later one."""
        prompt_ids = row.reply.prompt_ids
        if row.uid is None or not self._kept.limit_bytes or len(prompt_ids) < _LEAST_KEPT_TOKENS:
            return
        layers, read_ids = self._generator.extract_cache([row.uid])[row.uid]
        tokens = shared_prefix(read_ids, prompt_ids)
        if tokens >= _LEAST_KEPT_TOKENS and layers[0].keys is not None:
            self._kept.put(hold_row(layers, prompt_ids, tokens))

    def _drop(self, row: Row) -> None:
        if row.uid is not None:
            self._generator.remove([row.uid])
        del self._rows[row.ticket]

    def _end(self, row: Row, reason: FinishReason) -> Iterator[Event]:
        self._keep(row)
        self._drop(row)
        yield from row.reply.flush()
        yield row.reply.finish(reason)
