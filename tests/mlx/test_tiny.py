"""The model that ships with r1mac, as its engine and mlx-lm have it."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from r1mac import paths
from r1mac.convert.recipe import plain
from r1mac.engine.divergence import compare
from r1mac.engine.events import TextDelta
from r1mac.engine.load import Engine, load_engine
from r1mac.engine.request import GenerateRequest, Message, Sampling
from r1mac.plan.compute import Compute
from scripts.tiny.batches import Conversation, padded, prompt_text, reply_text
from scripts.tiny.export import read_model
from scripts.tiny.problems import Exchange, held_out_exchanges
from tests.conversions import by_r1mac
from tests.generators import value_of

SHIPPED = paths.shipped("catalog", "tiny")
MEGABYTE = 1_000_000


def load(folder: Path) -> Engine:
    """Return the engine of *folder*, computing in float32."""
    return value_of(load_engine(folder, compute=Compute.DEQUANTIZED, context_tokens=1024, prefill_step_tokens=256))


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `r1mac run tiny` would make."""
    return by_r1mac(SHIPPED, tmp_path_factory.mktemp("tiny") / "wide", plain(bits=16))


@pytest.fixture(scope="module", name="wide")
def _wide(folder: Path) -> Engine:
    return load(folder)


def said(engine: Engine, exchange: Exchange) -> tuple[str, str]:
    """Return the greedy reply to a question: thought and answer."""
    request = GenerateRequest(
        messages=(Message("user", exchange.question),), max_tokens=200, sampling=Sampling(temperature=0)
    )
    told = {"think": "", "answer": ""}
    for event in engine.session().generate(request):
        if isinstance(event, TextDelta):
            told[event.channel] += event.text
    return told["think"].strip(), told["answer"].strip()


def texts(engine: Engine, count: int) -> list[list[int]]:
    """Return sums with their solutions as tokens."""
    solved = held_out_exchanges(count, seed=3)
    return [engine.tokenizer.encode(prompt_text(one.question) + reply_text(one)) for one in solved]


def test_it_ships_in_ten_megabytes() -> None:
    """All of its files together stay small enough for every package and clone."""
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 10 * MEGABYTE


def test_the_engine_computes_what_was_trained(wide: Engine) -> None:
    """r1mac's layers rank the same next token first as the ones that the model was trained with, nearly everywhere."""
    sequences = texts(wide, 12)
    batch = padded([Conversation(ids, [1.0] * len(ids)) for ids in sequences])

    first, _, _ = read_model(SHIPPED).guesses(batch)

    for row, ids in enumerate(sequences):
        mine = np.array(mx.argmax(wide.model(mx.array([ids]))[0], axis=-1))
        assert np.mean(mine == first[row, : len(ids)]) > 0.98


def test_mlx_lm_writes_the_same(folder: Path, wide: Engine) -> None:
    """Plain mlx-lm loads the converted folder, and its greedy text is r1mac's."""
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    for exchange in held_out_exchanges(1, seed=4):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": exchange.question}], add_generation_prompt=True, tokenize=False
        )

        text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=200)

        thought, _, answer = text.partition("</think>")
        assert (thought.strip(), answer.strip()) == said(wide, exchange)


def test_narrow_widths_lose_little_by_little(wide: Engine, tmp_path: Path) -> None:
    """Of its own texts, 8 bits lose next to nothing, 4 bits some and 2 bits much: there is something to lose."""
    sequences = texts(wide, 6)

    lost = {}
    for bits in (8, 4, 2):
        narrow = load(by_r1mac(SHIPPED, tmp_path / str(bits), plain(bits=bits)))
        *_, found = compare(narrow.model, wide.model, sequences)
        lost[bits] = found.kl_nats

    assert lost[8] < 0.01
    assert lost[8] < lost[4] < 0.05
    assert lost[4] < lost[2]
