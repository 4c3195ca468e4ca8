"""A server without a model: a room whose models recite, and jobs that are read to their end."""

import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

from r1mac.engine.control import Control
from r1mac.engine.events import Event, TextDelta
from r1mac.engine.fake import RecitingSession
from r1mac.engine.request import GenerateRequest, Message
from r1mac.errors import DoesNotFit, R1MacError, UnknownModel
from r1mac.prepare.files import PrepareEvent, Progress
from r1mac.server.asked import Asked
from r1mac.server.job import Job
from r1mac.server.lanes import Lane, Outcome, Solo
from r1mac.server.room import Loaded
from r1mac.server.state import ContextOffer, Contexts, ServedModel
from r1mac.units import GIB
from tests.replies import finished


@dataclass
class RecitingRoom:
    """Models that recite.

    Attributes:
        answers: what each model says, turn after turn, as ``RecitingSession`` takes it.
        broken: the models that cannot be opened, and why.
        opened: the models that were opened, and ``-NAME`` for each that was let go of, in order.
        make_lane: what writes; a session that recites, if that is not said.
        context_tokens: what is planned for where nobody chose.
        longest_tokens: the longest context that fits.
        chosen: what was chosen for each model.
        full: why no context can be changed now, if none can.
        reloads: whether another context has the weights loaded anew.
    """

    answers: dict[str, Iterable[str | Exception]]
    broken: dict[str, R1MacError] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    make_lane: Callable[[], Lane] | None = None
    context_tokens: int = 1000
    longest_tokens: int = 100_000
    chosen: dict[str, int] = field(default_factory=dict)
    full: R1MacError | None = None
    reloads: bool = False
    open_now: str | None = None
    _session: RecitingSession | None = None
    _in_force: dict[str, int] = field(default_factory=dict)
    _of_requests: set[str] = field(default_factory=set)

    def find(self, name: str | None) -> str:
        name = name or next(iter(self.answers))
        if name not in self.answers and name not in self.broken:
            raise UnknownModel(f"there is no model {name!r}")
        return name

    def check(self, name: str) -> None:
        if name in self.broken:
            raise self.broken[name]

    def open(self, name: str) -> Generator[PrepareEvent, None, Loaded]:
        assert self.open_now is None
        yield Progress(task="load", title=name, done=1, total=1)
        self.open_now = name
        self.opened.append(name)
        return self._loaded(name, RecitingSession(self.answers[name], in_thought=False))

    def _loaded(self, name: str, session: RecitingSession) -> Loaded:
        context_tokens = self.chosen.get(name, self.context_tokens)
        self._in_force[name] = context_tokens
        self._session = session
        return Loaded(
            name=name,
            defaults=GenerateRequest(messages=(), max_tokens=1000),
            context_tokens=context_tokens,
            safe_tokens=context_tokens // 2,
            make_lane=self.make_lane or (lambda: Solo(session)),
            count=lambda request: sum(len(message.text.split()) for message in request.messages),
            vocab_size=100,
            longest_tokens=self.longest_tokens,
            may_grow=lambda: name not in self.chosen or name in self._of_requests,
        )

    def resize(self) -> Loaded | None:
        assert self.open_now is not None
        assert self._session is not None
        if self.full is not None:
            raise self.full
        if self.reloads:
            return None
        self.opened.append(f"{self.open_now}:{self.chosen[self.open_now]}")
        return self._loaded(self.open_now, self._session)

    def choose_context(self, name: str, context_tokens: int, *, of_request: bool = False) -> None:
        if context_tokens > self.longest_tokens:
            raise DoesNotFit(
                f"{name} does not fit with {context_tokens} tokens",
                hint=f"the longest that fits is {self.longest_tokens} tokens",
            )
        self.chosen[name] = context_tokens
        if of_request:
            self._of_requests.add(name)
        else:
            self._of_requests.discard(name)

    def undo_context(self, name: str, context_tokens: int) -> None:
        if self.chosen.get(name) == context_tokens:
            self.chosen[name] = self._in_force[name]

    def contexts(self, name: str, loaded: Loaded | None) -> Contexts:
        in_use = loaded.context_tokens if loaded is not None and loaded.name == name else None
        planned = self.chosen.get(name, self.context_tokens)
        lengths = sorted({4096, 8192, 65_536, self.longest_tokens, 131_072, planned, in_use or planned})
        return Contexts(
            model=name,
            loaded=in_use is not None,
            context_tokens=in_use or planned,
            chosen=name in self.chosen and name not in self._of_requests,
            model_context_tokens=131_072,
            longest_context_tokens=self.longest_tokens,
            kv_bits=16,
            budget_bytes=GIB * 36,
            offers=tuple(
                ContextOffer(
                    context_tokens=tokens, total_bytes=GIB * 5 + tokens * 2**18, fits=tokens <= self.longest_tokens
                )
                for tokens in lengths
            ),
        )

    def close(self) -> None:
        if self.open_now is not None:
            self.opened.append(f"-{self.open_now}")
        self.open_now = self._session = None

    def models(self, loaded: Loaded | None) -> tuple[ServedModel, ...]:
        return tuple(
            ServedModel(name=name, title=name, loaded=loaded is not None and loaded.name == name)
            for name in self.answers
        )

    def count(self, name: str, asked: Asked) -> int:
        return sum(len(message.text.split()) for message in asked.messages)


class GatedLane:
    """A lane whose replies write one word at a step, as long as the test lets them.

    Attributes:
        gate: while it is set the replies write; each step waits for it.
        words: what each reply says, over and over, until it is cancelled or has said *most* of them.
    """

    def __init__(self, slots: int = 1, *, most: int = 10**6) -> None:
        self.slots = slots
        self.gate = threading.Event()
        self.submitted: list[str] = []
        self.failing = threading.Event()
        self.closed = False
        self._most = most
        self._replies: dict[int, tuple[Control, int]] = {}

    def __len__(self) -> int:
        return len(self._replies)

    def submit(self, request: GenerateRequest, control: Control) -> int:
        self.submitted.append(request.messages[-1].text)
        self._replies[len(self.submitted)] = (control, 0)
        return len(self.submitted)

    def step(self) -> Iterable[tuple[int, Outcome]]:
        self.gate.wait(0.01)
        if self.failing.is_set():
            self.failing.clear()
            raise RuntimeError("the GPU has gone")
        for ticket, (control, said) in list(self._replies.items()):
            if control.cancelled or said == self._most:
                del self._replies[ticket]
                yield ticket, finished("cancelled" if control.cancelled else "stop", generated_tokens=said)
            elif self.gate.is_set():
                self._replies[ticket] = (control, said + 1)
                yield ticket, TextDelta(channel="answer", text="word ")

    def close(self) -> None:
        self.closed = True
        self._replies.clear()


def asked(text: str = "why?", **changes: object) -> Asked:
    """Return what a client asks with one message."""
    return Asked(messages=(Message("user", text),), **changes)  # type: ignore[arg-type]


async def told(job: Job) -> list[Event]:
    """Return all events of a job."""
    return [event async for event in job.events()]


def text(events: Iterable[Event]) -> str:
    """Return the text of the events."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))
