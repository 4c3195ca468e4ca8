"""``r1mac push``."""

import sys

import click

from r1mac import settings as settings_module
from r1mac.cli import options
from r1mac.machine import detect


@click.command(short_help="Upload MODEL to the Hub repository REPO.")
@click.argument("repo")
@click.argument("model", default=".")
@options.bits
@click.option("--public", is_flag=True, help="Make a new repository public.  [default: private]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@options.quiet
def command(repo: str, model: str, bits: int | None, public: bool, yes: bool, quiet: bool) -> None:
    """Upload MODEL to the Hub repository REPO.

    MODEL is a folder that `r1mac convert` made, a name that `r1mac list` shows, or whatever it is run as; without
    it, the folder that you are in. It is checked first. REPO is USER/NAME or ORGANISATION/NAME; it is made if it
    is not there. Log in before: `hf auth login`, or HF_TOKEN with a token that may write.
    """
    from r1mac.hub.upload import upload
    from r1mac.prepare.pushing import plan_push, verified
    from r1mac.ui import console
    from r1mac.ui.progress import ProgressDisplay

    push = plan_push(repo, model, settings_module.load(bits=bits), public=public)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"Uploading {push} without a terminal to ask at needs --yes.")
        click.confirm(f"Upload {push}?", abort=True, err=True)
    elif not quiet:
        console.note(f"uploading {push}")
    with ProgressDisplay(quiet=quiet, as_json=False) as display:
        display.run(verified(push, detect.detect()))
    names = [name for name, _ in push.files]
    page = upload(push.folder, names, repo, public=public, quiet=quiet or not sys.stderr.isatty())
    if not quiet:
        console.note(f"uploaded: {page}")
