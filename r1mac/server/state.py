"""What the server's routes know of the worker: its state as one value, and what they ask of it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from r1mac.server.asked import Asked
    from r1mac.server.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that can be asked for.

    Attributes:
        name: what clients call it.
        title: what people call it.
        bits: the width of its weights.
        size_bytes: its weights on the disk.
        context_tokens: the longest conversation that memory is planned for, while that is known.
        stored_at_s: when it was put into the store, by the clock on the wall.
        loaded: whether it is in memory now.
    """

    name: str
    title: str
    bits: int | None = None
    size_bytes: int = 0
    context_tokens: int | None = None
    stored_at_s: float = 0.0
    loaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOffer:
    """A context that may be chosen, and what the model would need with it in all.

    Attributes:
        fits: whether this computer has as much, and the model knows contexts of that length.
    """

    context_tokens: int
    total_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """How long conversations with one model are, and may be.

    Attributes:
        model: its name.
        loaded: whether it is in memory now.
        context_tokens: what memory is planned for; where the model is not loaded, what it would be loaded with.
        next_context_tokens: what was chosen and comes into force when the replies at work have ended.
        chosen: whether somebody chose it since the server began.
        model_context_tokens: the longest that the model knows.
        longest_context_tokens: the longest that fits; 0 where nothing does.
        kv_bits: width of the cache.
        budget_bytes: what may be used.
        problem: why the latest choice did not come into force.
        offers: some lengths to choose from, the shortest first.
    """

    model: str
    loaded: bool
    context_tokens: int
    next_context_tokens: int | None = None
    chosen: bool = False
    model_context_tokens: int
    longest_context_tokens: int
    kv_bits: int
    budget_bytes: int
    problem: str | None = None
    offers: tuple[ContextOffer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What the worker does at one moment.

    Attributes:
        phase: ``empty`` no model is loaded, ``loading`` one is on its way, ``ready``, or ``stopping`` for good.
        model: the name of the model that is loaded.
        parallel: how many replies may be written at once.
        running: how many are.
        waiting: how many more were asked for.
        queue_limit: how many may wait.
        progress_at_s: when a token or a step of a prompt was last finished, by the monotonic clock.
        tokens_per_s: what all replies together write lately.
        context_tokens: the longest conversation that memory is planned for, a reply included.
        next_context_tokens: what that becomes when the replies at work have ended, if somebody chose another.
        longest_context_tokens: the longest that would fit.
        safe_tokens: how long a prompt may be and still leave room for thought and answer.
        weight_bytes: of the plan, the weights.
        cache_bytes: of the plan, the cache of full contexts.
        scratch_bytes: of the plan, what reading a prompt takes beside both.
        used_bytes: what MLX holds now.
        budget_bytes: what the plan may use.
        limit_bytes: what the GPU may use.
        prompt_tokens: read since the start, those from a cache included.
        cached_tokens: of them, those from a cache.
        written_tokens: written since the start.
        think_tokens: of them, those of thoughts.
        finished: how many replies ended, by reason.
        failed: how many came to nothing.
    """

    phase: Literal["empty", "loading", "ready", "stopping"] = "empty"
    model: str | None = None
    parallel: int = 1
    running: int = 0
    waiting: int = 0
    queue_limit: int = 0
    progress_at_s: float | None = None
    tokens_per_s: float | None = None
    context_tokens: int | None = None
    next_context_tokens: int | None = None
    longest_context_tokens: int | None = None
    safe_tokens: int | None = None
    weight_bytes: int | None = None
    cache_bytes: int | None = None
    scratch_bytes: int | None = None
    used_bytes: int | None = None
    budget_bytes: int | None = None
    limit_bytes: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    think_tokens: int = 0
    finished: "Mapping[str, int]" = field(default_factory=dict)
    failed: int = 0


class WorkerLike(Protocol):
    """What the routes need: ``worker.Worker``, or a stand-in."""

    def submit(self, job: "Job") -> None:
        """Take a job; its events come to it. Any thread.

        Raises:
            Refused: the job cannot be taken now; it says when to try again.
        """

    def cancel(self, job: "Job") -> None:
        """End a job: at once if it waits, else after the token or prompt step at work. Any thread."""

    def state(self) -> WorkerState:
        """Return what the worker does now. Any thread, without waiting."""

    def models(self) -> tuple[ServedModel, ...]:
        """Return the models that can be asked for, the loaded one first. Any thread; reads the disk."""

    def contexts(self, model: str | None) -> Contexts:
        """Return how long conversations with *model* may be. Any thread; reads the disk.

        Args:
            model: as a client calls it; None for the one that there is.

        Raises:
            R1MacError: it is not here, or its files are damaged.
        """

    def choose_context(self, model: str | None, context_tokens: int) -> Contexts:
        """Have *model* planned with another context, from when the replies at work have ended. As ``contexts``.

        Raises:
            DoesNotFit: there is no memory for it; the former one goes on.
            Refused: the server stops.
        """

    async def count_tokens(self, asked: "Asked") -> int:
        """Return how many tokens the prompt of *asked* has."""
