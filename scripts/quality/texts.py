"""What the compared models are calibrated with, and the text that none of them has seen."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SEQUENCE_TOKENS = 256
LIBRARY_MODULES = ("bisect", "heapq", "textwrap", "shlex", "tempfile", "fractions", "statistics", "difflib")
# As many sums as make some 30,000 tokens of the tiny model's, which is what r1mac's own text has of others'.
TINY_CALIBRATION_SUMS = 400
DWQ_BATCH = 4


class Texts(NamedTuple):
    """The texts of one model.

    Attributes:
        held_out: read to compare; each is a half, a third … of what is read.
        calibration: a file, or None for r1mac's own text.
    """

    held_out: tuple[str, ...]
    calibration: Path | None


def texts_of(model: str, work: Path) -> Texts:
    """Return a model's texts: sums for the tiny R1, which knows nothing else; prose and code for all others."""
    if model != "tiny":
        return Texts((reference_manual(), library_code()), None)
    calibration = work / "sums.txt"
    calibration.write_text("\n".join(training_sums(TINY_CALIBRATION_SUMS)), encoding="utf-8")
    return Texts(("\n".join(held_out_sums()),), calibration)


def reference_manual() -> str:
    """Return prose of Python's reference manual."""
    import pydoc_data.topics

    return "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))[100_000:]


def library_code() -> str:
    """Return source code of Python's library."""
    library = Path(os.__file__).parent
    return "".join((library / f"{name}.py").read_text(encoding="utf-8")[2000:8000] for name in LIBRARY_MODULES)


def held_out_sums() -> Iterator[str]:
    """Yield sums with their solutions, of pairs of numbers that the tiny R1 was not trained with."""
    from scripts.tiny.batches import prompt_text, reply_text
    from scripts.tiny.problems import held_out_exchanges

    for exchange in held_out_exchanges(400, seed=7):
        yield prompt_text(exchange.question) + reply_text(exchange)


def training_sums(wanted: int) -> Iterator[str]:
    """Yield sums with their solutions as the tiny R1 was trained with."""
    from numpy.random import default_rng

    from scripts.tiny.batches import prompt_text, reply_text
    from scripts.tiny.problems import draw_exchange

    rng = default_rng(11)
    for exchange in (draw_exchange(rng) for _ in range(wanted)):
        yield prompt_text(exchange.question) + reply_text(exchange)


def cut(texts: tuple[str, ...], folder: Path, tokens: int) -> list[list[int]]:
    """Return equal parts of *texts*, from all over them, as sequences of the token ids of the model in *folder*."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wanted = max(1, tokens // SEQUENCE_TOKENS // len(texts))
    sequences = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        step = max(len(ids) // wanted, SEQUENCE_TOKENS)
        starts = range(0, len(ids) - SEQUENCE_TOKENS, step)
        sequences += [ids[start : start + SEQUENCE_TOKENS] for start in list(starts)[:wanted]]
    return sequences


def place_for_mlx_lm(text: str, home: Path, samples: int) -> Path:
    """Put *text* where mlx-lm's learned methods look for what they fetch otherwise, below *home*; return a data set.

    The data set is for DWQ, which learns from *samples* pieces and measures twice with up to 32 of the others: of few
    samples those would be the most work, and there are no more of them than one batch.
    """
    import json

    kept = home / ".cache" / "mlx-lm" / "calibration_v5.txt"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text, encoding="utf-8")
    data = home / "data"
    data.mkdir(exist_ok=True)
    # Pieces of some 256 tokens: a sample is one.
    pieces = [text[start : start + 1000] for start in range(0, len(text), 1000)]
    if samples > 0:
        wanted = samples + DWQ_BATCH
        pieces = pieces[:: max(1, len(pieces) // wanted)][:wanted]
    with (data / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": piece}) + "\n" for piece in pieces)
    return data
