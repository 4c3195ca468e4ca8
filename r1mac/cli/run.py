"""``r1mac run``."""

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.engine.load import Engine
    from r1mac.engine.request import GenerateRequest
    from r1mac.prepare.planning import Judgement


_SILENCE_SECONDS, _PATIENCE_SECONDS = 1.0, 15.0


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
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy, which makes R1 loop.  [default: 0.6]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus of the sampler.  [default: 0.95]")
@click.option("--seed", type=int, help="Make the answer repeatable.")
@options.context
@options.bits
@options.kv_bits
@click.option("--no-think", is_flag=True, help="Ask for the answer at once, without a thought.")
@click.option("--force", is_flag=True, help="Run also where the plan says that memory does not suffice.")
@options.as_json
@options.quiet
def command(
    model: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    context_tokens: int | None,
    bits: int | None,
    kv_bits: int | None,
    no_think: bool,
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
    text = _prompt_text(prompt)
    if text is None and as_json:
        raise click.UsageError("--json needs a PROMPT, or text from a pipe.")
    chosen = settings_module.load(
        bits=bits,
        kv_bits=kv_bits,
        context_tokens=context_tokens,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
    )
    from r1mac.cli.start import start

    with contextlib.ExitStack() as held:
        judgement, engine = start(model, chosen, held, force=force, as_json=as_json, quiet=quiet)
        request = _request(judgement, chosen, system=system, seed=seed, think=not no_think)
        if text is None:
            return _chat(engine, request, judgement, quiet=quiet)
        return _answer(engine, request, judgement, text, as_json=as_json, quiet=quiet)


def _request(
    judgement: "Judgement", chosen: Settings, *, system: str | None, seed: int | None, think: bool
) -> "GenerateRequest":
    """Return what is asked each time, without the question."""
    from r1mac.engine.request import GenerateRequest, Message, Sampling

    spec = judgement.wish.target.spec
    default_max_tokens = spec.default_max_tokens if spec else judgement.plan.context_tokens
    return GenerateRequest(
        messages=(Message("system", system),) if system else (),
        max_tokens=chosen.max_tokens or default_max_tokens,
        sampling=Sampling(
            temperature=0.6 if chosen.temperature is None else chosen.temperature,
            top_p=0.95 if chosen.top_p is None else chosen.top_p,
            seed=seed,
        ),
        think=think,
    )


def _answer(
    engine: "Engine", request: "GenerateRequest", judgement: "Judgement", text: str, *, as_json: bool, quiet: bool
) -> int:
    """Answer one message and return the exit code."""
    from dataclasses import replace

    from r1mac.engine.control import Control
    from r1mac.engine.request import Message
    from r1mac.prepare.measured import remember
    from r1mac.ui import interrupt, stream

    control = Control()
    with interrupt.stops(control):
        request = replace(request, messages=(*request.messages, Message("user", text)))
        _, finished = stream.show(engine.session().generate(request, control), quiet=quiet, as_json=as_json)
    remember(judgement, finished.stats)
    return 130 if finished.reason == "cancelled" else 0


def _chat(engine: "Engine", request: "GenerateRequest", judgement: "Judgement", *, quiet: bool) -> int:
    from dataclasses import replace

    from r1mac.prepare.measured import remember
    from r1mac.ui.chat import Chat

    chat = Chat(
        session=engine.session(),
        make_request=lambda messages: replace(request, messages=messages),
        opening=request.messages,
        title=judgement.wish.target.title,
        quiet=quiet,
        on_finished=lambda finished: remember(judgement, finished.stats),
    )
    chat.run()
    return 0


def _prompt_text(prompt: str | None) -> str | None:
    """Return what to ask: the argument, what comes through a pipe or a file, or both; None for a chat."""
    piped = _piped_text(must_come=prompt in {None, "-"})
    text = piped if prompt in {None, "-"} else prompt
    if text is not None and not text.strip():
        raise click.UsageError("There is no prompt: it is empty.")
    if prompt not in {None, "-"} and piped and piped.strip():
        text = f"{prompt}\n\n{piped}"
    # An argument that is not UTF-8 reaches Python as lone surrogates, which no tokenizer takes.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if text is not None else None


def _piped_text(*, must_come: bool) -> str | None:
    """Return the text on standard input, or None where it is a terminal or nothing.

    A program may have started r1mac with a pipe that nobody writes to: unless the text *must_come*, one that
    stays silent is waited for only so long, and never dropped without a word.
    """
    if sys.stdin.isatty():
        return None
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not must_come:
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            return None
        if stat.S_ISFIFO(mode) and not _begins_in_time():
            return None
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _begins_in_time() -> bool:
    """Wait for the first byte on standard input and tell whether it came."""
    import select

    from r1mac.ui import console

    if select.select([sys.stdin], [], [], _SILENCE_SECONDS)[0]:
        return True
    console.note("waiting for the text on standard input …")
    if select.select([sys.stdin], [], [], _PATIENCE_SECONDS)[0]:
        return True
    console.note(f"nothing came in {_PATIENCE_SECONDS:.0f} s; answering the prompt alone")
    return False
