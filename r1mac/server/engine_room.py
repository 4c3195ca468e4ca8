"""Which model is loaded: one at a time, of those on this disk; the others when they are asked for."""

import contextlib
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from r1mac.engine.request import GenerateRequest, Sampling
from r1mac.errors import UnknownModel
from r1mac.machine.base import Machine
from r1mac.prepare.files import PrepareEvent
from r1mac.prepare.opening import Opened, Prepared, open_engine, prepare, reopened, replanned, with_kept_prompts
from r1mac.prepare.planning import Judgement, judge, judge_wish
from r1mac.prepare.target import Target, find_in_store, store_of, stored_target
from r1mac.server.admission import safe_tokens
from r1mac.server.asked import Asked
from r1mac.server.contexts import ContextChoices, longest_tokens
from r1mac.server.lanes import Lane, Solo
from r1mac.server.room import Loaded
from r1mac.server.state import Contexts, ServedModel
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.engine.load import Engine
    from r1mac.engine.prompt import PromptTemplate
    from r1mac.engine.tokenizer import Tokenizer
    from r1mac.hub.store import StoredModel


class _Opened(NamedTuple):
    """The model that is open."""

    name: str
    prepared: Prepared
    opened: Opened


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
        self._contexts = ContextChoices(self._usual)
        self._opened: _Opened | None = None
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
        judgement = self._contexts.judgement(name)
        if judgement is None and not self._is_first(name):
            judgement = self._usual(name)
        if judgement is not None:
            judgement.require()

    def open(self, name: str) -> Generator[PrepareEvent, None, Loaded]:
        """Load a model; as ``Room.open``."""
        prepared = yield from self._prepared(name)
        try:
            opened = yield from open_engine(prepared, self._machine, self._held, force=self._force)
        except BaseException:
            self.close()
            raise
        self._latest = name
        return self._entered(_Opened(name, prepared, opened))

    def resize(self) -> Loaded | None:
        """Have the model that is open go on with the context that was chosen for it; as ``Room.resize``."""
        former = self._opened
        assert former is not None
        judgement = self._contexts.judgement(former.name) or self._usual(former.name)
        judgement.require()
        prepared = replanned(former.prepared, judgement)
        opened = reopened(former.opened, former.prepared, prepared, self._machine, force=self._force)
        return None if opened is None else self._entered(_Opened(former.name, prepared, opened))

    def choose_context(self, name: str, context_tokens: int, *, of_request: bool = False) -> None:
        """Have a model planned with another context; as ``Room.choose_context``."""
        self._contexts.choose(name, context_tokens, of_request=of_request)

    def undo_context(self, name: str, context_tokens: int) -> None:
        """Take the choice of that context back; as ``Room.undo_context``."""
        self._contexts.undo(name, context_tokens)

    def contexts(self, name: str, loaded: Loaded | None) -> Contexts:
        """Return how long conversations with a model may be; as ``Room.contexts``."""
        in_use = loaded.context_tokens if loaded is not None and loaded.name == name else None
        return self._contexts.told(name, in_use)

    def close(self) -> None:
        """Let go of the model that is open, in order; as ``Room.close``. Nothing else may name it any more."""
        from r1mac.engine.memory.limits import let_go

        self._opened = None
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

        folder = self._first.folder if self._first and self._is_first(name) else store_of(self._settings).folder(name)
        tokenizer = Tokenizer(folder)
        template = PromptTemplate(folder, tokenizer)
        return _counting(tokenizer, template)

    def _is_first(self, name: str) -> bool:
        """Tell whether it is the model that the server was started with."""
        return self._first is not None and name == _name_of(self._first.judgement.wish.target)

    def _usual(self, name: str) -> Judgement:
        """Return the plan of a model as the server's settings have it, whether or not it fits.

        Raises:
            R1MacError: its files are damaged.
        """
        hardware = self._machine.profile()
        if self._first is not None and self._is_first(name):
            return judge_wish(self._first.judgement.wish, hardware)
        return judge(stored_target(name), self._settings, hardware)

    def _prepared(self, name: str) -> Generator[PrepareEvent, None, Prepared]:
        """Find what there is of a model, with the context that was chosen for it.

        Raises:
            R1MacError: it does not fit, or its files are damaged.
        """
        judgement = self._contexts.judgement(name)
        if self._first is not None and self._is_first(name):
            if judgement is None:
                return self._first
            judgement.require()
            return replanned(self._first, judgement)
        judgement = judgement or self._usual(name)
        judgement.require()
        return with_kept_prompts((yield from prepare(judgement, self._machine, self._settings)))

    def _entered(self, entered: _Opened) -> Loaded:
        """Note what is open now, and return it as the worker needs it."""
        name, judgement = entered.name, entered.prepared.judgement
        self._opened = entered
        self._contexts.settle(name, judgement.plan.context_tokens)
        free = judgement.wish.context_tokens is None
        return replace(
            _loaded(name, entered.opened.engine, entered.prepared),
            may_grow=lambda: self._contexts.may_grow(name, free=free),
        )

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

    def refit_lane(lane: Lane) -> None:
        writer: Any = lane.session if isinstance(lane, Solo) else lane
        engine.refit(writer, kept_prompts_bytes=plan.kept_prompts_bytes)

    return Loaded(
        name=name,
        defaults=_defaults(prepared),
        context_tokens=plan.context_tokens,
        safe_tokens=safe_tokens(plan.context_tokens, wish.typical_answer_tokens),
        make_lane=make_lane,
        refit_lane=refit_lane,
        longest_tokens=longest_tokens(judgement),
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
