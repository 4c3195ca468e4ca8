"""``r1mac serve``."""

import contextlib
import errno
import ipaddress
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.errors import PortInUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

    from r1mac.machine.base import Machine
    from r1mac.prepare.opening import Prepared
    from r1mac.server.worker import Worker
    from r1mac.settings import Settings

_DEFAULT_PORT = 11_435
# Of one request's head; the body has a limit of its own (server.security).
_MOST_HEAD_BYTES = 64 * 1024
# What may still be on its way to clients when the last reply has ended.
_LAST_BYTES_SECONDS = 5
_BACKLOG = 128
# SIGHUP is a Terminal window that is closed.
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@click.command(short_help="Serve MODEL to other programs, on this computer or another.")
@click.argument("model", required=False)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=_DEFAULT_PORT, show_default=True, help="Where to listen."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other than this computer's own needs a key.")
@click.option("--api-key", envvar="R1MAC_API_KEY", metavar="KEY", help="What clients must send.  [env: R1MAC_API_KEY]")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name by which clients may call this computer, such as studio.local.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="A web page of another server that may ask this one, such as http://localhost:3000.",
)
@options.parallel
@options.context
@options.bits
@options.kv_bits
@options.draft
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most tokens of a reply that does not say so itself.  [default: the model's own]",
)
@click.option(
    "--queue",
    "queue_limit",
    type=click.IntRange(0, 10_000),
    default=32,
    show_default=True,
    metavar="N",
    help="How many requests may wait; more are told to come back later.",
)
@click.option(
    "--idle-unload",
    "idle_seconds",
    metavar="TIME",
    callback=options.seconds,
    help="Unload the model after so long without a request, such as 15m.  [default: keep it]",
)
@click.option(
    "--patience",
    "patience_seconds",
    default="30s",
    show_default=True,
    metavar="TIME",
    callback=options.seconds,
    help="How long replies at work may go on when the server is told to stop.",
)
@click.option("--force", is_flag=True, help="Serve MODEL also where the plan says that memory does not suffice.")
@options.quiet
def command(
    model: str | None,
    port: int,
    host: str,
    api_key: str | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    parallel: int | None,
    context_tokens: int | None,
    bits: int | None,
    kv_bits: int | None,
    draft: str | None,
    max_tokens: int | None,
    queue_limit: int,
    idle_seconds: float | None,
    patience_seconds: float,
    force: bool,
    quiet: bool,
) -> int:
    """Serve MODEL to other programs, on this computer or another.

    They speak to it as to OpenAI, Anthropic or Ollama; a page to chat on is at the same address. MODEL is fetched, and
    converted where need be. Without it, and when a request names another model, one of those on this disk is loaded
    in place of the one that is there; `r1mac pull` fetches further ones.

    Ctrl-C ends it when the replies at work have ended, a second one at once.
    """
    require_key(host, api_key)
    chosen = settings_module.load(
        bits=bits,
        kv_bits=kv_bits,
        context_tokens=context_tokens,
        max_tokens=max_tokens,
        draft=draft,
        parallel=parallel,
    )
    chosen = _without_drafts(chosen) if (chosen.parallel or 1) > 1 else chosen
    with contextlib.closing(_bound(host, port)) as listener, _terminated_as_interrupted():
        from r1mac.cli.start import find_and_fetch
        from r1mac.machine import detect

        machine = detect.detect()
        first = None if model is None else find_and_fetch(model, chosen, machine, force=force, quiet=quiet)
        worker = _worker(first, chosen, machine, queue_limit=queue_limit, idle_seconds=idle_seconds, force=force)
        _start(worker, first, quiet=quiet)
        from r1mac.server.app import make_app

        app = make_app(worker, api_key=api_key, hosts=(*hosts, host), origins=origins)
        _tell_where(first, listener, has_key=bool(api_key), quiet=quiet)
        _serve(worker, app, listener, patience_seconds=patience_seconds, quiet=quiet)
    return 0


def require_key(host: str, api_key: str | None) -> None:
    """Raise click.UsageError where other computers would get in without a key."""
    if not api_key and not _is_own(host):
        raise click.UsageError(
            f"--host {host} lets other computers in, who then must know a key: say --api-key KEY, or set R1MAC_API_KEY."
        )


def _without_drafts(chosen: "Settings") -> "Settings":
    """Return the settings of replies that are written side by side, which nobody drafts for."""
    if "draft" in chosen.said and chosen.draft != "off":
        raise click.UsageError("--draft needs --parallel 1: nobody drafts for replies that are written side by side.")
    return replace(chosen, draft="off")


def _is_own(host: str) -> bool:
    """Tell whether only this computer reaches *host*."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that has the port; who connects before the model is there waits for it.

    Raises:
        PortInUse: somebody else has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise click.UsageError(f"--host {host} is no address: {error.strerror or error}.") from error
    # What an earlier server left closing is no reason to wait; on macOS and Linux a living one still is.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            other = f"r1mac serve --port {port % 65_535 + 1}"
            raise PortInUse(
                f"port {port} of {host} is taken",
                hint=f"an r1mac may run there already; stop it, or choose another: {other}",
            ) from error
        raise click.UsageError(f"{host}:{port} cannot be listened to: {error.strerror}.") from error
    return listener


@contextlib.contextmanager
def _terminated_as_interrupted() -> "Iterator[None]":
    """Let the other signals that end a process do so as Ctrl-C does: a loaded model is never left behind."""

    def on_signal(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    previous = {number: signal.signal(number, on_signal) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _worker(
    first: "Prepared | None",
    chosen: "Settings",
    machine: "Machine",
    *,
    queue_limit: int,
    idle_seconds: float | None,
    force: bool,
) -> "Worker":
    from r1mac.server.engine_room import EngineRoom
    from r1mac.server.worker import Worker

    return Worker(
        EngineRoom(chosen, machine, first=first, force=force),
        queue_limit=queue_limit,
        parallel=chosen.parallel or 1,
        idle_seconds=idle_seconds,
        opens_first=first is not None,
    )


def _start(worker: "Worker", first: "Prepared | None", *, quiet: bool) -> None:
    """Start the worker and show how its first model gets on.

    Raises:
        R1MacError: it could not be loaded.
    """
    from r1mac.ui.progress import ProgressDisplay

    worker.start()
    if first is None:
        return
    try:
        with ProgressDisplay(quiet=quiet, as_json=False) as display:
            display.run(worker.opening())
    except BaseException:
        _end(worker)
        raise


def _end(worker: "Worker") -> None:
    """Have the worker cancel what it does and let go of the model."""
    worker.stop(patience_seconds=0)
    worker.join()


def _tell_where(first: "Prepared | None", listener: socket.socket, *, has_key: bool, quiet: bool) -> None:
    """Say where the server is and how it is asked."""
    from r1mac.prepare.target import described
    from r1mac.ui import console

    if quiet:
        return
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    what = "the models on this disk" if first is None else described(first.judgement.wish.target)
    key = ' -H "Authorization: Bearer $R1MAC_API_KEY"' if has_key else ""
    console.note(
        f"serving {what} at {url} (OpenAI: {url}/v1, Anthropic and Ollama: {url}); a page to chat on is there too\n"
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        """-d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": true}'"""
    )


def _serve(worker: "Worker", app: "ASGIApp", listener: socket.socket, *, patience_seconds: float, quiet: bool) -> None:
    """Serve until somebody ends it, and then in order."""
    import asyncio

    import uvicorn

    from r1mac.server.limits import Limits
    from r1mac.server.protocol import protocol
    from r1mac.ui import console

    class Server(uvicorn.Server):
        """Leaves the signals to us: a first one stops the worker, not the answers at work."""

        @contextlib.contextmanager
        def capture_signals(self) -> "Iterator[None]":
            yield

    config = uvicorn.Config(
        app,
        http=protocol(head_seconds=Limits().piece_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
    )
    server = Server(config)

    def on_signal() -> None:
        state = worker.state()
        stopping = state.phase == "stopping"
        if state.running and not stopping and not quiet:
            console.note(
                f"stopping when what is being written has ended ({state.running}), "
                f"in {patience_seconds:.0f} s at most; Ctrl-C again cancels it"
            )
        worker.stop(patience_seconds=0 if stopping else patience_seconds)

    async def end_with_the_worker() -> None:
        await asyncio.to_thread(worker.join)
        server.should_exit = True

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, *_ENDING):
            loop.add_signal_handler(number, on_signal)
        ending = asyncio.create_task(end_with_the_worker())
        await server.serve(sockets=[listener])
        worker.stop(patience_seconds=0)
        await ending

    try:
        asyncio.run(serve())
    finally:
        _end(worker)
