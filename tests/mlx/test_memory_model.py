"""The memory model beside ``mx.get_peak_memory``, on small models of every architecture."""

import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One of each architecture, none of them a shape that the tables were counted on.
SHAPES = ("llama 16 of 4", "qwen2 14 of 2", "qwen3 32 of 4", "mla 16 heads", "experts 4 of 16", "experts alone")


@pytest.fixture(scope="module")
def points() -> list[dict[str, str]]:
    """Return what scripts/measure-memory measures on its quick grid: steps of 64 and 256, 16, 8 and 4 bits."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "measure-memory"),
        "--grid",
        "quick",
        "--shapes",
        ",".join(SHAPES),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, env=os.environ)
    return list(csv.DictReader(done.stdout.splitlines()))


def test_every_point_is_within_5_percent(points: list[dict[str, str]]) -> None:
    """Weights, cache and scratch as planned are the measured peak, at every step and width of the cache."""
    errors = {
        (row["shape"], row["step"], row["kv_bits"]): int(row["predicted"]) / int(row["measured"]) - 1 for row in points
    }

    assert len(errors) == 6 * len(SHAPES)
    assert {name: error for name, error in errors.items() if abs(error) > 0.05} == {}
    assert statistics.median(map(abs, errors.values())) < 0.02


def test_the_scratch_itself_is_not_planned_too_small(points: list[dict[str, str]]) -> None:
    """The part that the model has to say something about is right too, not only the sum with the weights.

    How far MLX queues ahead of what runs depends a little on what else the computer does: it may be less.
    """
    for row in points:
        measured = int(row["measured"]) - int(row["weights"]) - int(row["cache"])
        assert 0.9 * measured <= int(row["scratch"]) <= 1.4 * measured, row
