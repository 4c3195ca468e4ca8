"""Which model is loaded: one at a time, of those on this disk; the others when they are asked for."""

import contextlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from r1mac.engine.request import GenerateRequest, Sampling
from r1mac.errors import UnknownModel
from r1mac.machine.base import Machine
from r1mac.plan.fit import MemoryPlan
from r1mac.prepare.files import PrepareEvent
from r1mac.prepare.opening import Prepared, open_engine, prepare, with_kept_prompts
from r1mac.prepare.planning import Judgement, judge
from r1mac.prepare.target import Target, find_in_store, store_of, stored_target
from r1mac.server.admission import safe_tokens
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.lanes import Lane, Solo
from r1mac.server.state import ServedModel, WorkerState
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.engine.events import GenerationStats
    from r1mac.engine.load import Engine
    from r1mac.engine.prompt import PromptTemplate
    from r1mac.engine.tokenizer import Tokenizer
    from r1mac.hub.store import StoredModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that is loaded, as the worker needs it.

    Attributes:
        name: what clients call it.
        defaults: what is asked of it where a request says nothing.
        context_tokens: the longest conversation that memory is planned for.
        safe_tokens: how long a prompt may be so that a typical thought and its answer have room behind it.
        make_lane: makes what writes its replies. On the worker's thread.
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

    def told_in(self, state: WorkerState) -> WorkerState:
        """Return *state* with what is known of this model. Any thread."""
        state = replace(
            state,
            phase="ready" if state.phase == "empty" else state.phase,
            model=self.name,
            context_tokens=self.context_tokens,
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
    """What the worker needs of an engine room: ``EngineRoom``, or a stand-in."""

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

    def close(self) -> None:
        """Let go of the model that is open, in order. On the worker's thread."""

    def models(self, loaded: Loaded | None) -> tuple[ServedModel, ...]:
        """Return the models that can be asked for, the loaded one first. Any thread."""

    def count(self, name: str, asked: Asked) -> int:
        """Return how many tokens a prompt has for a model that is not loaded. Any thread.

        Raises:
            BadCheckpoint: its tokenizer or template is damaged.
        """


class EngineRoom:
    """The models of this computer's store, one of them loaded at a time.

    A model that a request names is loaded from the store; nothing is fetched, and no path is opened, for a request.
    """

    def __init__(
        self, settings: Settings, machine: Machine, *, first: Prepared | None = None, force: bool = False
    ) -> None:
        """Make a room in which nothing is loaded.

        Args:
            settings: that models are loaded with.
            machine: the computer.
            first: the model that the server was started with; it may be a folder of the user's own.
            force: whether models may be loaded that do not fit beside what runs already.
        """
        self._settings = settings
        self._machine = machine
        self._first = None if first is None else with_kept_prompts(first)
        self._force = force
        self._held = contextlib.ExitStack()
        self._counters: dict[str, Callable[[GenerateRequest], int]] = {}
        self._lock = threading.Lock()
        self._latest = None if self._first is None else _name_of(self._first.judgement.wish.target)

    def find(self, name: str | None) -> str:
        """Return the name of the model that a client calls *name*; as ``Room.find``."""
        if name is None:
            return self._latest or self._only()
        if self._first is not None and name in _names_of(self._first.judgement.wish.target):
            return _name_of(self._first.judgement.wish.target)
        stored = find_in_store(name, self._settings)
        if stored is None:
            raise UnknownModel(
                f"there is no model {name[:100]!r} on this computer",
                hint="GET /v1/models lists those that are; `r1mac pull MODEL` fetches one",
            )
        return stored.name

    def check(self, name: str) -> None:
        """Do nothing, if the model could be opened now; as ``Room.check``."""
        if self._first is None or name != _name_of(self._first.judgement.wish.target):
            self._judge(name)

    def open(self, name: str) -> Generator[PrepareEvent, None, Loaded]:
        """Load a model; as ``Room.open``."""
        prepared = self._first
        if prepared is None or name != _name_of(prepared.judgement.wish.target):
            prepared = with_kept_prompts((yield from prepare(self._judge(name), self._machine, self._settings)))
        try:
            engine = yield from open_engine(prepared, self._machine, self._held, force=self._force)
        except BaseException:
            self.close()
            raise
        self._latest = name
        return _loaded(name, engine, prepared)

    def close(self) -> None:
        """Let go of the model that is open, in order; as ``Room.close``. Nothing else may name it any more."""
        from r1mac.engine.memory.limits import let_go

        let_go()
        self._held.close()

    def models(self, loaded: Loaded | None) -> tuple[ServedModel, ...]:
        """Return the models that can be asked for, the loaded one first; as ``Room.models``."""
        found = {model.name: _served(model) for model in store_of(self._settings).list() if not model.missing_files()}
        if self._first is not None:
            first = _first_served(self._first)
            found.setdefault(first.name, first)
        if loaded is not None and loaded.name in found:
            model = replace(found[loaded.name], loaded=True, context_tokens=loaded.context_tokens)
            found = {loaded.name: model, **{name: other for name, other in found.items() if name != loaded.name}}
        return tuple(found.values())

    def count(self, name: str, asked: Asked) -> int:
        """Return how many tokens a prompt has for a model that is not loaded; as ``Room.count``."""
        with self._lock:
            if name not in self._counters:
                self._counters[name] = self._counter(name)
            return self._counters[name](asked.request(GenerateRequest(messages=(), max_tokens=1)))

    def _counter(self, name: str) -> Callable[[GenerateRequest], int]:
        from r1mac.engine.prompt import PromptTemplate
        from r1mac.engine.tokenizer import Tokenizer

        first = self._first
        is_first = first is not None and name == _name_of(first.judgement.wish.target)
        folder = first.folder if first is not None and is_first else store_of(self._settings).folder(name)
        tokenizer = Tokenizer(folder)
        template = PromptTemplate(folder, tokenizer)
        return _counting(tokenizer, template)

    def _judge(self, name: str) -> Judgement:
        """Return the plan of a stored model.

        Raises:
            R1MacError: it does not fit, or its files are damaged.
        """
        judgement = judge(stored_target(name), self._settings, self._machine.profile())
        judgement.require()
        return judgement

    def _only(self) -> str:
        """Return the one model of the store."""
        names = [model.name for model in store_of(self._settings).list() if not model.missing_files()]
        if len(names) == 1:
            return names[0]
        known = f"there are {len(names)}: {', '.join(names)}" if names else "there is none on this computer"
        raise UnknownModel(
            f"the request names no model, and {known}",
            hint="name one of them" if names else "`r1mac pull MODEL` fetches one",
        )


def _loaded(name: str, engine: "Engine", prepared: Prepared) -> Loaded:
    from r1mac.engine.memory.limits import held_bytes
    from r1mac.prepare.measured import remember

    judgement = prepared.judgement
    plan, wish = judgement.plan, judgement.wish

    def make_lane() -> Lane:
        if plan.parallel == 1:
            return Solo(engine.session(keeps_prompts=True))
        return engine.batch(plan.parallel, kept_prompts_bytes=plan.kept_prompts_bytes)

    return Loaded(
        name=name,
        defaults=_defaults(prepared),
        context_tokens=plan.context_tokens,
        safe_tokens=safe_tokens(plan.context_tokens, wish.typical_answer_tokens),
        make_lane=make_lane,
        count=_counting(engine.tokenizer, engine.template),
        vocab_size=engine.tokenizer.vocab_size,
        held_bytes=held_bytes,
        plan=plan,
        # What replies side by side show of a computer's speed is not what its forecast is about.
        learn=lambda stats: remember(judgement, stats) if plan.parallel == 1 else None,
    )


def _counting(tokenizer: "Tokenizer", template: "PromptTemplate") -> Callable[[GenerateRequest], int]:
    from r1mac.engine.reply import prompt_of

    return lambda request: len(tokenizer.encode(prompt_of(request, template).text))


def _defaults(prepared: Prepared) -> GenerateRequest:
    """Return what is asked of a model where a request says nothing."""
    chosen, judgement = prepared.settings, prepared.judgement
    said = {name: getattr(chosen, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    spec = judgement.wish.target.spec
    default_max_tokens = spec.default_max_tokens if spec else judgement.plan.context_tokens
    return GenerateRequest(
        messages=(),
        max_tokens=chosen.max_tokens or default_max_tokens,
        sampling=Sampling(**{name: value for name, value in said.items() if value is not None}),
    )


def _name_of(target: Target) -> str:
    """Return what clients call a model: its name in the store, or that of its folder."""
    return target.store_name or target.title


def _names_of(target: Target) -> frozenset[str]:
    """Return all that a client may call the model that the server was started with."""
    spec = target.spec
    catalog = (spec.key, spec.title, *spec.aliases) if spec is not None else ()
    names = (target.store_name, target.title, target.repo, target.convert_from, *catalog)
    return frozenset(name for name in names if name is not None)


def _served(stored: "StoredModel") -> ServedModel:
    return ServedModel(
        name=stored.name,
        title=stored.name,
        bits=stored.manifest.bits,
        size_bytes=stored.size_bytes,
        stored_at_s=_seconds(stored.manifest.created),
    )


def _first_served(first: Prepared) -> ServedModel:
    """Return the model that the server was started with, where it is a folder of the user's own."""
    judgement = first.judgement
    return ServedModel(
        name=_name_of(judgement.wish.target),
        title=judgement.wish.target.title,
        bits=judgement.wish.target.bits,
        size_bytes=judgement.wish.weights.stored_bytes,
        stored_at_s=first.folder.stat().st_mtime,
    )


def _seconds(created: str) -> float:
    try:
        return datetime.fromisoformat(created).timestamp()
    except ValueError:
        return 0.0
