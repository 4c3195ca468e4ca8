"""Where models, settings and shipped data are.

``R1MAC_HOME`` moves everything below one folder; ``R1MAC_MODELS_DIR`` (or ``models_dir`` in
config.toml) moves only the models, for example to an external disk.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of config.toml, which need not exist."""
    return _home(environ, "config") / "config.toml"


def models_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the default folder of the model store, which need not exist."""
    return _home(environ, "data") / "models"


def history_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the chat's input history, which need not exist."""
    return _home(environ, "data") / "chat-history"


def measured_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of what this computer's own runs showed, which need not exist."""
    return _home(environ, "data") / "measured.json"


def step_costs_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of what steps of several tokens cost on this computer, which need not exist."""
    return _home(environ, "data") / "step-costs.json"


def runs_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the records that runs leave when they do not end in order, which need not exist."""
    return _home(environ, "data") / "runs"


def chats_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the conversations that ``run --continue`` goes on with, which need not exist."""
    return _home(environ, "data") / "chats"


def prompt_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what models have read, to be deleted at will; it need not exist."""
    return _home(environ, "cache") / "prompt-cache"


def occupancy_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder in which r1mac's processes tell each other what they hold, one for the whole computer."""
    if home := environ.get("R1MAC_HOME"):
        return expanded(Path(home)) / "running"
    shared = Path("/Users/Shared")  # what macOS has for all users; unlike /tmp it is not tidied
    return (shared if shared.is_dir() else Path("/tmp")) / "r1mac-running"  # noqa: S108 - files are opened O_NOFOLLOW


def tuning_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the record of what ``r1mac tune`` changed, which need not exist."""
    return _home(environ, "data") / "tuning.json"


def script(name: str) -> Path:
    """Return a shell script of r1mac: in an installed package beside its modules, in a checkout below scripts/."""
    installed = shipped("_shipped", "scripts", name)
    return installed if installed.is_file() else Path(__file__).parent.parent / "scripts" / name


def recipes_dir() -> Path:
    """Return the folder of the recipes that r1mac has: in a package beside its modules, in a checkout conversions/."""
    installed = shipped("_shipped", "conversions")
    return installed if installed.is_dir() else Path(__file__).parent.parent / "conversions"


def shipped(*parts: str) -> Path:
    """Return a data file that ships inside the package, such as ``shipped("catalog", "models.toml")``.

    ``importlib.resources`` would do the same for zipped packages and costs 15 ms of every start.
    """
    return Path(__file__).parent.joinpath(*parts)


def expanded(path: Path) -> Path:
    """Return *path* with a leading ``~`` resolved; the home of nobody stays as it is, and will not be found."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _home(environ: Mapping[str, str], kind: str) -> Path:
    if home := environ.get("R1MAC_HOME"):
        return expanded(Path(home))
    # Where platformdirs would put them; importing it costs as much as a tenth of a start (docs/lab.md).
    if sys.platform == "darwin":
        # Backups leave the caches out, and macOS may empty them where the disk is full.
        return Path.home() / "Library" / ("Caches" if kind == "cache" else "Application Support") / "r1mac"
    usual = {"config": ".config", "data": ".local/share", "cache": ".cache"}[kind]
    variable = f"XDG_{kind.upper()}_HOME"
    chosen = environ.get(variable, "").strip()
    # The XDG specification: a path that is not absolute is to be ignored.
    return (Path(chosen) if chosen.startswith("/") else Path.home() / usual) / "r1mac"
