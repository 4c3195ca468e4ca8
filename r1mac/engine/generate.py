"""One conversation: request to events."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
from mlx import nn

from r1mac.engine.constraint import Constraint
from r1mac.engine.control import Control
from r1mac.engine.drafts.speculation import Speculation
from r1mac.engine.events import RESUMABLE, Event, FinishReason, Notice
from r1mac.engine.kept.checkpoint import Checkpoint, CheckpointHeader, SavedReply
from r1mac.engine.kept.prompt_cache import PromptCache
from r1mac.engine.memory.supervision import MemoryTerms, Supervisor
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.reply import Reply, begin_reply
from r1mac.engine.request import GenerateRequest
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.transcript import Transcript
from r1mac.engine.writing import Writing
from r1mac.errors import DoesNotFit
from r1mac.plan.memory import WIDE_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Aids:
    """What helps a session, each of it if there is one.

    Attributes:
        memory: what the plan says of memory, so that a reply that runs short degrades and still arrives.
        prompt_cache: what was read before.
        speculation: drafts tokens.
        fingerprint: of the model, for replies that are kept on the disk.
        keeps_prompts: whether what was read of a prompt is put on the disk also where the reply is not kept there.
    """

    memory: MemoryTerms | None = None
    prompt_cache: PromptCache | None = None
    speculation: Speculation | None = None
    fingerprint: str = ""
    keeps_prompts: bool = False


class Session:
    """One conversation. Lives on the thread that loaded the model; generates one answer at a time.

    The caller hands over the whole conversation each time; what of it is still in the cache is not read again.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        *,
        context_tokens: int,
        prefill_step_tokens: int,
        kv_bits: int = WIDE_BITS,
        aids: Aids | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context_tokens = context_tokens
        self._prefill_step_tokens = prefill_step_tokens
        self._aids = aids or Aids()
        self._transcript = Transcript(model, prefill_step_tokens=prefill_step_tokens, kv_bits=kv_bits)
        # Of what was read last: a thought is no part of any later prompt.
        self._prompt_tokens = 0

    def generate(
        self, request: GenerateRequest, control: Control | None = None, *, kept_at: Path | None = None
    ) -> Iterator[Event]:
        """Yield events; the last is Finished.

        With *kept_at* the reply is kept in that file as it is written, and can be resumed if it does not end in order.

        Raises:
            DoesNotFit: the prompt alone fills the planned context.
            BadAnswerFormat: no answer can have the format that was asked for.
        """
        reply = begin_reply(request, self._template, self._tokenizer, context_tokens=self._context_tokens)
        if kept_at is not None:
            reply.journal = Checkpoint.write(kept_at, self._header(reply))
        yield from self._write(reply, control or Control())

    def resume(self, saved: SavedReply, control: Control | None = None) -> Iterator[Event]:
        """Go on with a reply that did not end. Yield its text from the beginning, then what follows; as ``generate``.

        Raises:
            DoesNotFit: what there is of it fills the planned context.
            BadAnswerFormat: no answer can have the format that was asked for.
        """
        header = saved.header
        reply = begin_reply(
            header.request,
            self._template,
            self._tokenizer,
            context_tokens=self._context_tokens,
            prompt_ids=header.prompt_ids,
        )
        if reply.room_tokens <= len(saved.token_ids):
            raise DoesNotFit(
                f"the reply that was cut off has {len(header.prompt_ids) + len(saved.token_ids)} tokens with its "
                f"prompt, and memory is planned for {self._context_tokens}",
                hint=f"allow more: --context {header.context_tokens}",
            )
        if saved.finished is not None:
            # It ended, and only what keeps conversations did not hear of it.
            yield from reply.replay(saved.token_ids, seconds=saved.think_seconds)
            yield from reply.flush()
            yield reply.finish(saved.finished)
            return
        if header.model != self._aids.fingerprint:
            yield Notice(kind="cache", text="this reply was begun by another model, or by other weights of this one")
        self._transcript.requantize(saved.kv_bits)
        reply.journal = Checkpoint.resume(saved)
        yield from reply.replay(saved.token_ids, seconds=saved.think_seconds)
        yield from self._write(reply, control or Control())

    def refit(self, *, context_tokens: int, prefill_step_tokens: int, aids: Aids) -> None:
        """Go on under another memory plan, between two replies.

        What was read stays, if the new context has room for it. Of *aids* all but ``keeps_prompts`` are taken.
        """
        self._context_tokens, self._prefill_step_tokens = context_tokens, prefill_step_tokens
        self._aids = replace(aids, keeps_prompts=self._aids.keeps_prompts)
        if len(self._transcript) + self._transcript.room_tokens > context_tokens:
            # Cutting it would give back no memory.
            self._transcript.forget()
            mx.clear_cache()

    def _write(self, reply: Reply, control: Control) -> Iterator[Event]:
        """Write what *reply* lacks."""
        transcript, aids = self._transcript, self._aids
        transcript.prefill_step_tokens = self._prefill_step_tokens
        answer_format = reply.answer_format
        constraint = None if answer_format is None else Constraint(answer_format, self._tokenizer)
        accepted_before = aids.speculation.accepted_tokens if aids.speculation else 0
        with contextlib.ExitStack() as held:
            if reply.journal is not None:
                held.callback(reply.journal.close)
            mx.reset_peak_memory()
            supervisor = None
            if aids.memory is not None:
                watch = held.enter_context(aids.memory.make_watch())
                reply.read_peak_bytes = lambda: watch.peak_bytes
                supervisor = Supervisor(watch, aids.memory, transcript, reply)
            try:
                yield from self._adopt(reply)
                writing = Writing(
                    reply,
                    transcript,
                    self._tokenizer,
                    control,
                    supervisor=supervisor,
                    speculation=aids.speculation,
                    constraint=constraint,
                    keep=self._keep if reply.journal is not None else None,
                )
                reason = yield from writing.events()
                if aids.speculation is not None:
                    reply.accepted_draft_tokens = aids.speculation.accepted_tokens - accepted_before
                finished = reply.finish(reason)
                yield from self._end(reply, reason)
                yield finished
            except GeneratorExit:
                raise
            except BaseException:
                # Something failed inside a step: what the cache holds is not known.
                transcript.forget()
                raise

    def _header(self, reply: Reply) -> CheckpointHeader:
        sampling = replace(reply.request.sampling, seed=reply.sampler.seed)
        return CheckpointHeader(
            model=self._aids.fingerprint,
            request=replace(reply.request, sampling=sampling),
            prompt_ids=tuple(reply.prompt_ids),
            kv_bits=self._transcript.kv_bits,
            context_tokens=self._context_tokens,
            started_at_s=time.time(),
        )

    def _adopt(self, reply: Reply) -> Iterator[Notice]:
        """Take over what is known of the conversation from elsewhere."""
        cache = self._aids.prompt_cache
        if cache is not None:
            adopted = cache.adopt(self._transcript, reply.all_ids, worth_tokens=self._prompt_tokens)
            if adopted is not None and adopted.note:
                yield Notice(kind="cache", text=adopted.note)
        self._prompt_tokens = len(reply.prompt_ids)

    def _keep(self) -> Iterator[Notice]:
        """Put what was read so far on the disk."""
        cache = self._aids.prompt_cache
        if cache is not None and (note := cache.store(self._transcript, tail=False).note):
            yield Notice(kind="cache", text=note)

    def _end(self, reply: Reply, reason: FinishReason) -> Iterator[Notice]:
        """Keep what is worth it of a reply that has ended."""
        cache, journal = self._aids.prompt_cache, reply.journal
        if journal is None:
            # The end of a prompt that fills no block would be written anew at every turn.
            if cache is not None and self._aids.keeps_prompts:
                note = cache.store(self._transcript, len(reply.prompt_ids), tail=False).note
                if note is not None:
                    yield Notice(kind="cache", text=note)
            return
        resumable = reason in RESUMABLE
        prompt_tokens = len(reply.prompt_ids)
        if cache is not None:
            if note := cache.store(self._transcript, None if resumable else prompt_tokens).note:
                yield Notice(kind="cache", text=note)
            if not resumable and reply.think_tokens:
                # A thought is no part of any later prompt.
                cache.drop_after(self._transcript, prompt_tokens)
        if not resumable:
            journal.finish(reason)
        if journal.problem:
            yield Notice(kind="cache", text=f"this reply is not kept: {journal.problem}")
