"""The forecast of speed beside published runs of MLX on real Macs (tests/vectors/speeds.csv)."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from r1mac.plan.speed import MEASURED_CHIPS
from tests.speeds import arch_of, decode_error, load_runs, prefill_error

ROOT = Path(__file__).parents[2]
RUNS = [run for run in load_runs() if not run.left_out]
DECODE = [run for run in RUNS if run.decode_tokens_per_s]
PREFILL = [run for run in RUNS if run.prefill_tokens_per_s]


@pytest.mark.parametrize(
    ("runs", "error", "at_least"), [(DECODE, decode_error, 25), (PREFILL, prefill_error, 12)], ids=["decode", "prefill"]
)
def test_forecasts_meet_the_published_runs(runs, error, at_least):
    """The median forecast is within 10 % of the run, and the worst within 25 %."""
    errors = {run.name: abs(error(run)) for run in runs}
    worst = max(errors, key=errors.__getitem__)

    assert len(runs) >= at_least
    assert statistics.median(errors.values()) <= 0.10
    assert errors[worst] <= 0.25, worst


def test_every_published_run_is_a_target_or_says_why_not():
    """A run is left out for a reason; all others are MLX's, and of shapes and Macs that can be forecast."""
    left_out = [run for run in load_runs() if run.left_out]

    assert len(left_out) + len(RUNS) == len(load_runs())
    assert all(run.source for run in load_runs())
    assert all("mlx" in run.engine.lower() for run in RUNS)
    assert {arch_of(run.model).model_type for run in RUNS} == {"llama", "qwen2", "qwen3", "deepseek_v3"}


def test_measured_chips_are_those_with_a_run():
    """A chip is called measured exactly if the constants were fitted to a decode on it."""
    assert {run.chip.removeprefix("Apple ") for run in DECODE if run.fitted} == MEASURED_CHIPS


def test_the_constants_are_those_of_the_fit():
    """scripts/fit-speeds makes the module's constants out of the published runs."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fit-speeds", "--check"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
