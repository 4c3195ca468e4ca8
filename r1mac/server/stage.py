"""The model that is loaded, the lane that writes its replies, and how long they may be."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from r1mac.prepare.files import PrepareEvent
from r1mac.server.admission import Refused
from r1mac.server.room import Loaded, Room
from r1mac.server.state import Contexts
from r1mac.server.wire_errors import problem_of

if TYPE_CHECKING:
    from r1mac.server.asked import Asked
    from r1mac.server.lanes import Lane

logger = logging.getLogger(__name__)

# How long a stopping server is worth trying again after.
RESTART_SECONDS = 30


def stopping() -> Refused:
    """Return what those are told who ask a server that stops."""
    return Refused("the server is stopping", retry_after_seconds=RESTART_SECONDS)


class _ContextWish(NamedTuple):
    """A context that somebody chose, and that may not be in force yet."""

    model: str
    context_tokens: int


class Stage:
    """What is loaded now. The worker thread's, but for what is said otherwise; others may read its attributes.

    Nobody keeps what they read of it beyond the moment: memory of a model that somebody still names does not come back.

    Attributes:
        loaded: the model; None where there is none.
        lane: what writes its replies.
        loading: whether a model is on its way.

    Args:
        room: the models.
        changed: guards the wish for another context, and wakes the worker for it.
        must_stop: tells whether the server is to stop, which ends the loading of a model.
    """

    def __init__(self, room: Room, changed: threading.Condition, *, must_stop: Callable[[], bool]) -> None:
        self.loaded: Loaded | None = None
        self.lane: Lane | None = None
        self.loading = False
        self._room = room
        self._changed = changed
        self._must_stop = must_stop
        self._wish: _ContextWish | None = None
        # Why the latest wish came to nothing, and for which model.
        self._problem: tuple[str, str] | None = None

    def has(self, model: str) -> bool:
        """Tell whether a model is loaded."""
        return self.loaded is not None and self.loaded.name == model

    def open(self, model: str, tell: Callable[[PrepareEvent], None] | None = None) -> None:
        """Load a model, unless the server is to stop meanwhile; no other may be loaded.

        Raises:
            R1MacError: it cannot be loaded.
        """
        self.loading = True
        steps = self._room.open(model)
        try:
            while True:
                if self._must_stop():
                    raise stopping()
                try:
                    event = next(steps)
                except StopIteration as stop:
                    self.loaded = stop.value
                    break
                if tell is not None:
                    tell(event)
        finally:
            steps.close()
            self.loading = False
        assert self.loaded is not None
        self.lane = self.loaded.make_lane()

    @property
    def next_context(self) -> int | None:
        """The context that was chosen for the model that is loaded, if it has another now. Any thread."""
        wish, loaded = self._wish, self.loaded
        if wish is None or loaded is None or wish.model != loaded.name:
            return None
        return wish.context_tokens if wish.context_tokens != loaded.context_tokens else None

    def contexts(self, model: str) -> Contexts:
        """Return how long conversations with a model may be. Any thread; reads the disk.

        Raises:
            R1MacError: its files are damaged.
        """
        told = self._room.contexts(model, self.loaded)
        problem = self._problem
        return replace(
            told,
            next_context_tokens=self.next_context if told.loaded else None,
            problem=problem[1] if problem is not None and problem[0] == model else None,
        )

    def wish_context(self, model: str, context_tokens: int) -> None:
        """Wish that a context which was chosen comes into force, if the model is loaded. Any thread."""
        with self._changed:
            self._wish, self._problem = _ContextWish(model, context_tokens), None
            self._changed.notify_all()

    def change_context(self) -> None:
        """Have the context come into force that was wished for; if that cannot be, the former one goes on."""
        wish, problem = self._wish, None
        assert wish is not None
        try:
            self._resize(wish.context_tokens)
        except Exception as error:  # noqa: BLE001 - who chose it is told
            logger.warning("the context of %s did not change: %s", wish.model, error)
            problem = (wish.model, problem_of(error).message)
        with self._changed:
            if self._wish is wish:
                self._wish, self._problem = None, problem

    def grown_for(self, asked: "Asked") -> int | None:
        """Return the context that a request has the model's grow to; None where the one that there is does."""
        assert self.loaded is not None
        context_tokens = self.loaded.context_for(asked)
        return None if context_tokens == self.loaded.context_tokens else context_tokens

    def grow(self, context_tokens: int) -> None:
        """Have the context grow; where that cannot be, the one that there is does. No reply may be at work.

        Raises:
            R1MacError: not even that can be had any more.
        """
        assert self.loaded is not None
        name = self.loaded.name
        try:
            self._room.choose_context(name, context_tokens, of_request=True)
            self._resize(context_tokens)
        except Exception as error:
            if not self.has(name):
                raise
            logger.info("the context of %s did not grow to %d tokens: %s", name, context_tokens, error)

    def _resize(self, context_tokens: int) -> None:
        """Have the model go on with that context, which was chosen for it; no reply may be at work.

        Raises:
            R1MacError: it cannot be. The former context goes on; if not even that can be had, nothing is loaded.
        """
        assert self.loaded is not None
        name = self.loaded.name
        try:
            resized = self._room.resize()
            if resized is None:
                self.close()
                self.open(name)
            else:
                self._refit(resized)
        except Exception:
            self._room.undo_context(name, context_tokens)
            if not self.has(name) and not self._must_stop():
                self.open(name)
            raise

    def replace_lane(self) -> None:
        """Begin with a new lane: what the old one holds is not known, or not wanted."""
        self._drop_lane()
        if self.loaded is not None:
            self.lane = self.loaded.make_lane()

    def close(self) -> None:
        """Let go of the model."""
        self._drop_lane()
        self.loaded = None
        self._room.close()

    def _refit(self, resized: Loaded) -> None:
        self.loaded = resized
        if self.lane is None or resized.refit_lane is None:
            self.replace_lane()
            return
        try:
            resized.refit_lane(self.lane)
        except Exception:
            logger.exception("a lane did not take another context")
            self.replace_lane()

    def _drop_lane(self) -> None:
        lane, self.lane = self.lane, None
        if lane is not None:
            try:
                lane.close()
            except Exception:
                logger.exception("a lane did not close in order")
