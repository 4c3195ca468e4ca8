"""``r1mac run``."""

import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from r1mac import settings as settings_module
from r1mac.cli import answers as answers_module
from r1mac.cli import options
from r1mac.cli.answers import Answers
from r1mac.cli.asking import prompt_text
from r1mac.errors import UnknownChat
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.engine.load import Engine
    from r1mac.engine.request import GenerateRequest
    from r1mac.prepare.chats import KeptChat
    from r1mac.prepare.planning import Judgement
    from r1mac.prepare.prompts import Asked
    from r1mac.prepare.talk import Talk


@click.command(short_help="Run MODEL: answer PROMPT, or chat.")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="System prompt. The first R1 models work better without one.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most tokens to write, thought included.  [default: the model's own, 32768 or more for R1]",
)
@answers_module.options
@options.context
@options.bits
@options.kv_bits
@click.option("--no-think", is_flag=True, help="Ask for the answer at once, without a thought.")
@click.option(
    "--think",
    "think_seconds",
    metavar="TIME",
    callback=options.seconds,
    help="Most time for the thought, such as 90s or 2m; then the answer follows.",
)
@click.option(
    "--think-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most tokens for the thought; then the answer follows.",
)
@click.option("--continue", "goes_on", is_flag=True, help="Go on with the last chat with MODEL, or its cut-off reply.")
@options.draft
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Answer each line of FILE, a prompt or JSON, and write a line of JSON for each.",
)
@options.parallel
@click.option("--force", is_flag=True, help="Run also where the plan says that memory does not suffice.")
@options.as_json
@options.quiet
def command(
    model: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    answers: Answers,
    context_tokens: int | None,
    bits: int | None,
    kv_bits: int | None,
    no_think: bool,
    think_seconds: float | None,
    think_tokens: int | None,
    goes_on: bool,
    draft: str | None,
    prompts: str | None,
    parallel: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run MODEL: answer PROMPT, or chat.

    MODEL is a name of the catalog (70b, 8b, 671b, demo …), a Hub repository (org/name) or a folder. It is
    fetched, and converted where need be, when it is run for the first time.

    Without PROMPT the text comes from a pipe or, on a terminal, from a chat. The answer goes to stdout;
    thought, progress and statistics go to stderr.
    """
    if no_think and (think_seconds is not None or think_tokens is not None):
        raise click.UsageError("--no-think asks for no thought, so its length cannot be said.")
    if goes_on and system is not None:
        raise click.UsageError("A chat keeps its system prompt; leave out --system, or begin a new one.")
    if prompts is not None:
        _require_prompts_alone(prompt, answers, goes_on=goes_on)
    elif parallel is not None:
        raise click.UsageError("--parallel answers several --prompts at once; one PROMPT is answered alone.")
    text = None if prompts is not None else prompt_text(prompt, may_lack=goes_on)
    if text is None and as_json and not goes_on and prompts is None:
        raise click.UsageError("--json needs a PROMPT, or text from a pipe.")
    if answers.logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json and a PROMPT: elsewhere there is no place for them.")
    chosen = settings_module.load(
        bits=bits,
        kv_bits=kv_bits,
        context_tokens=context_tokens,
        max_tokens=max_tokens,
        draft=draft,
        parallel=parallel,
        **answers.preferences,
    )
    from r1mac.cli.start import start
    from r1mac.prepare.talk import Talk

    asked = None if prompts is None else _read_prompts(prompts)
    with contextlib.ExitStack() as held:
        kept = held.enter_context(_kept_chat(model, chosen, goes_on=goes_on)) if asked is None else None
        judgement, engine = start(model, chosen, held, force=force, as_json=as_json, quiet=quiet)
        request = _request(engine, judgement, chosen, answers, system=system, think=not no_think)
        request = replace(request, think_seconds=think_seconds, think_tokens=think_tokens)
        if asked is not None:
            return _answer_all(engine, request, judgement, asked, quiet=quiet)
        talk = Talk(engine.session(), kept)
        if goes_on:
            request = replace(request, messages=talk.messages)
        if text is None and not as_json and sys.stdin.isatty():
            return _chat(talk, request, judgement, quiet=quiet)
        return _answer(talk, request, judgement, text, as_json=as_json, quiet=quiet)


def _require_prompts_alone(prompt: str | None, answers: Answers, *, goes_on: bool) -> None:
    """Refuse beside --prompts what would not be heeded."""
    if prompt is not None or goes_on:
        raise click.UsageError("--prompts has the prompts; leave out PROMPT and --continue.")
    if answers.logprobs is not None:
        raise click.UsageError("--logprobs needs --json and a PROMPT: elsewhere there is no place for them.")


def _read_prompts(path: str) -> "list[Asked]":
    """Return the conversations of a file, or of standard input."""
    from r1mac.errors import BadPrompts
    from r1mac.prepare.prompts import parse_prompts

    where = "standard input" if path == "-" else path
    try:
        with click.open_file(path, encoding="utf-8") as file:
            return parse_prompts(file.read(), where)
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise BadPrompts(f"{where} cannot be read: {reason}", hint="write one prompt on each line") from error


def _kept_chat(model: str, chosen: Settings, *, goes_on: bool) -> "contextlib.AbstractContextManager[KeptChat | None]":
    """Return where the conversation is kept: a new place, or with *goes_on* that of the last one.

    Raises:
        UnknownChat: there is none to go on with.
    """
    from r1mac.prepare.chats import latest_chat, new_chat
    from r1mac.prepare.target import resolve, settings_names
    from r1mac.ui import console

    name = settings_names(resolve(model, chosen))[0]
    if goes_on:
        kept = latest_chat(name, on_note=console.note)
        if kept is None:
            raise UnknownChat(f"there is no chat with {model} to go on with", hint=f"begin one: r1mac run {model}")
        return kept
    if chosen.save_chats is False:
        return contextlib.nullcontext()
    kept, note = new_chat(name)
    if note is not None:
        console.note(note)
    return kept


def _request(
    engine: "Engine",
    judgement: "Judgement",
    chosen: Settings,
    answers: Answers,
    *,
    system: str | None,
    think: bool,
) -> "GenerateRequest":
    """Return what is asked each time, without the question."""
    from r1mac.engine.request import GenerateRequest, Message

    spec = judgement.wish.target.spec
    default_max_tokens = spec.default_max_tokens if spec else judgement.plan.context_tokens
    return GenerateRequest(
        messages=(Message("system", system),) if system else (),
        max_tokens=chosen.max_tokens or default_max_tokens,
        sampling=answers.sampling(chosen, engine.tokenizer),
        think=think,
        stop=answers.stop,
        logprobs=answers.logprobs,
        answer_format=answers.answer_format,
    )


def _answer(
    talk: "Talk", request: "GenerateRequest", judgement: "Judgement", text: str | None, *, as_json: bool, quiet: bool
) -> int:
    """Finish the reply that was cut off, if there is one; answer one message, if there is one; return the exit code."""
    from r1mac.engine.control import Control
    from r1mac.engine.request import Message
    from r1mac.prepare.measured import remember
    from r1mac.ui import interrupt, stream

    if text is None and not talk.has_unfinished_reply:
        raise click.UsageError("The last reply is whole: say a PROMPT to go on with.")
    go_on = f"{judgement.wish.command_line('run')} --continue"
    control = Control()
    with interrupt.stops(control):
        if talk.has_unfinished_reply:
            events = talk.resume(control)
            shown = stream.show(events, quiet=quiet, as_json=as_json, control=control, go_on=go_on)
            finished = shown.finished
            request = replace(request, messages=(*request.messages, Message("assistant", shown.answer)))
        if text is not None and not control.cancelled:
            request = replace(request, messages=(*request.messages, Message("user", text)))
            events = talk.generate(request, control)
            seed = request.sampling.seed
            finished = stream.show(
                events, quiet=quiet, as_json=as_json, control=control, go_on=go_on, seed=seed
            ).finished
    remember(judgement, finished.stats)
    return 130 if finished.reason == "cancelled" else 0


def _answer_all(
    engine: "Engine", request: "GenerateRequest", judgement: "Judgement", asked: "list[Asked]", *, quiet: bool
) -> int:
    """Answer a file of prompts, some of them at once, and return the exit code."""
    from r1mac.engine.control import Control
    from r1mac.ui import interrupt
    from r1mac.ui.prompts import answer_all

    control = Control()
    with interrupt.stops(control), contextlib.closing(engine.batch(judgement.plan.parallel)) as batch:
        failed = answer_all(
            batch,
            asked,
            lambda messages: replace(request, messages=(*request.messages, *messages)),
            control,
            quiet=quiet,
        )
    return 130 if control.cancelled else int(failed > 0)


def _chat(talk: "Talk", request: "GenerateRequest", judgement: "Judgement", *, quiet: bool) -> int:
    from r1mac.prepare.measured import remember
    from r1mac.ui.chat import Chat

    opening = tuple(message for message in request.messages if message.role == "system")
    chat = Chat(
        session=talk,
        make_request=lambda messages: replace(request, messages=messages),
        opening=opening,
        title=judgement.wish.target.title,
        quiet=quiet,
        on_finished=lambda finished: remember(judgement, finished.stats),
        messages=list(request.messages[len(opening) :]),
        begun=_begun(talk),
        go_on=f"{judgement.wish.command_line('run')} --continue",
    )
    chat.run()
    return 0


def _begun(talk: "Talk") -> str:
    """Return what to say of a conversation that began earlier."""
    if talk.kept is None or not talk.messages:
        return ""
    import time

    turns = sum(message.role == "user" for message in talk.messages)
    when = time.strftime("%A, %H:%M", time.localtime(talk.kept.record.updated_at_s))
    return f"going on with the chat of {when}, {turns} {'turn' if turns == 1 else 'turns'}"
