"""What the worker needs of a model that is loaded, and of the room that loads it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from r1mac.engine.request import GenerateRequest
from r1mac.plan.fit import MemoryPlan
from r1mac.prepare.files import PrepareEvent
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.contexts import grown
from r1mac.server.lanes import Lane
from r1mac.server.state import Contexts, ServedModel, WorkerState

if TYPE_CHECKING:
    from r1mac.engine.events import GenerationStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that is loaded, as the worker needs it.

    Attributes:
        name: what clients call it.
        defaults: what is asked of it where a request says nothing.
        context_tokens: the longest conversation that memory is planned for.
        safe_tokens: how long a prompt may be so that a typical thought and its answer have room behind it.
        make_lane: makes what writes its replies. On the worker's thread.
        refit_lane: has the lane that wrote under another context go on under this one, between two replies; it keeps
            what was read, as far as it has room. None where a new lane must be made. On the worker's thread.
        longest_tokens: the longest context that would fit.
        may_grow: tells whether a request may have the context grow (``server.contexts``). Any thread.
        count: tells how many tokens the prompt of a request has. Any thread.
        vocab_size: how many tokens it knows.
        held_bytes: tells what is held in memory now. Any thread.
        plan: its memory.
        learn: is told of each reply that was written alone.
    """

    name: str
    defaults: GenerateRequest
    context_tokens: int
    safe_tokens: int
    make_lane: Callable[[], Lane]
    count: Callable[[GenerateRequest], int]
    vocab_size: int
    held_bytes: Callable[[], int] = lambda: 0
    plan: MemoryPlan | None = None
    refit_lane: Callable[[Lane], None] | None = None
    longest_tokens: int = 0
    may_grow: Callable[[], bool] = lambda: False
    learn: "Callable[[GenerationStats], None]" = lambda _stats: None

    def request(self, asked: Asked) -> GenerateRequest:
        """Return what the engine is asked.

        Raises:
            BadRequest: a value is outside what it can mean for this model.
        """
        request = asked.request(self.defaults)
        beyond = [token_id for token_id, _ in request.sampling.logit_bias if token_id >= self.vocab_size]
        if beyond:
            raise BadRequest(
                f"logit_bias names token {beyond[0]}, and the model has {self.vocab_size}", field="logit_bias"
            )
        return request

    def context_for(self, asked: Asked) -> int:
        """Return how long a context a request is answered in: the one that there is, or a longer one. Any thread."""
        wanted = asked.context_tokens or 0
        if wanted <= self.context_tokens or not self.may_grow():
            return self.context_tokens
        return grown(wanted, context_tokens=self.context_tokens, longest_tokens=self.longest_tokens)

    def told_in(self, state: WorkerState) -> WorkerState:
        """Return *state* with what is known of this model. Any thread."""
        state = replace(
            state,
            phase="ready" if state.phase == "empty" else state.phase,
            model=self.name,
            context_tokens=self.context_tokens,
            longest_context_tokens=self.longest_tokens or None,
            safe_tokens=self.safe_tokens,
            used_bytes=self.held_bytes(),
        )
        plan = self.plan
        if plan is None:
            return state
        return replace(
            state,
            weight_bytes=plan.weight_bytes + plan.draft_bytes,
            cache_bytes=plan.kv_cache_bytes + plan.kept_prompts_bytes,
            scratch_bytes=plan.prefill_scratch_bytes,
            budget_bytes=plan.budget_bytes,
            limit_bytes=plan.limit_bytes,
        )


class Room(Protocol):
    """What the worker needs of an engine room: ``engine_room.EngineRoom``, or a stand-in."""

    def find(self, name: str | None) -> str:
        """Return the name of the model that a client calls *name*; None for the one that there is. Any thread.

        Raises:
            UnknownModel: it is not here.
        """

    def check(self, name: str) -> None:
        """Do nothing, if the model could be opened now.

        Raises:
            R1MacError: it does not fit, or its files are damaged.
        """

    def open(self, name: str) -> Generator[PrepareEvent, None, Loaded]:
        """Load a model; no other may be open. On the worker's thread.

        Raises:
            R1MacError: it cannot be loaded.
        """

    def resize(self) -> Loaded | None:
        """Have the model that is open go on with the context that was chosen for it. On the worker's thread.

        Returns:
            The same weights under the new plan; None where they have to be loaded anew for it (``close``, ``open``).

        Raises:
            R1MacError: there is no room for it now; the former context goes on.
        """

    def choose_context(self, name: str, context_tokens: int, *, of_request: bool = False) -> None:
        """Have a model planned with another context from when it is resized or opened. Any thread; reads the disk.

        Raises:
            R1MacError: it does not fit; what was chosen before still is.
        """

    def undo_context(self, name: str, context_tokens: int) -> None:
        """Take the choice of that context back, which could not be carried out. Any thread."""

    def contexts(self, name: str, loaded: Loaded | None) -> Contexts:
        """Return how long conversations with a model may be. Any thread; reads the disk.

        Raises:
            R1MacError: its files are damaged.
        """

    def close(self) -> None:
        """Let go of the model that is open, in order. On the worker's thread."""

    def models(self, loaded: Loaded | None) -> tuple[ServedModel, ...]:
        """Return the models that can be asked for, the loaded one first. Any thread."""

    def count(self, name: str, asked: Asked) -> int:
        """Return how many tokens a prompt has for a model that is not loaded. Any thread.

        Raises:
            BadCheckpoint: its tokenizer or template is damaged.
        """
