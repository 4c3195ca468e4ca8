"""A training that can be stopped: all of it in one file, replaced whole."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.tiny.model import TinyModel
from scripts.tiny.optimizer import Optimizer


class Spent(NamedTuple):
    """What a training took so far.

    Attributes:
        wall_seconds: by the clock, pauses left out.
        processor_seconds: of all cores.
        tokens: read.
    """

    wall_seconds: float = 0
    processor_seconds: float = 0
    tokens: int = 0


def save(path: Path, model: TinyModel, optimizer: Optimizer, spent: Spent, settings: str) -> None:
    """Write everything that the next step needs."""
    arrays = {f"weight {name}": value.data for name, value in model.weights.items()}
    arrays |= {f"memory {name}": values for name, values in optimizer.memory.items()}
    arrays |= {f"square {name}": values for name, values in optimizer.squares.items()}
    arrays |= {f"bias {index}": values for index, values in model.biases.items()}
    new = path.with_suffix(".new.npz")
    np.savez(new, steps=optimizer.steps, spent=spent, settings=settings, **arrays)  # type: ignore[arg-type]
    new.replace(path)


def load(path: Path, model: TinyModel, optimizer: Optimizer, settings: str) -> Spent:
    """Put what ``save`` wrote into *model* and *optimizer*.

    Raises:
        SystemExit: it is of a training with other settings.
    """
    with np.load(path) as data:
        if str(data["settings"]) != settings:
            raise SystemExit(
                f"{path} is of another training ({data['settings']}, not {settings}): delete it, or --work"
            )
        optimizer.steps = int(data["steps"])
        for name, value in model.weights.items():
            value.data[:] = data[f"weight {name}"]
            optimizer.memory[name][:] = data[f"memory {name}"]
        for name, squares in optimizer.squares.items():
            squares[:] = data[f"square {name}"]
        for index, bias in model.biases.items():
            bias[:] = data[f"bias {index}"]
        wall, processor, tokens = data["spent"]
    return Spent(float(wall), float(processor), int(tokens))
