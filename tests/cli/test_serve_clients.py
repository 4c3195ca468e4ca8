"""The tour's last part: all clients at one server, and the installed command with a real model behind it."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from tests.cli.conftest import COMMAND, ROOT
from tests.http_server import MODEL, Reciter, served
from tests.touring import ANSWER, QUESTION, said, url_of

FRANCE = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
# The newest client of Anthropic's has no name for it.
COLD = {"temperature": 0}
YES_OR_NO = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}


def test_all_three_at_once():
    """Clients of all APIs share one model, each with its own answer."""

    async def talk() -> list[str]:
        gpt = openai.AsyncOpenAI(base_url=f"{url_of(server)}/v1", api_key="none", max_retries=0)
        claude = anthropic.AsyncAnthropic(base_url=url_of(server), api_key="none", max_retries=0)
        llama = ollama.AsyncClient(host=url_of(server))
        async with gpt, claude:
            replies = await asyncio.gather(
                *(gpt.chat.completions.create(model=MODEL, messages=QUESTION) for _ in range(3)),
                *(claude.messages.create(model=MODEL, max_tokens=1000, messages=QUESTION) for _ in range(3)),
                *(llama.chat(MODEL, QUESTION) for _ in range(3)),
            )
        await llama.close()
        return [
            *(reply.choices[0].message.content for reply in replies[:3]),
            *(reply.content[0].text for reply in replies[3:6]),
            *(reply.message.content for reply in replies[6:]),
        ]

    with served(Reciter(said)) as server:
        assert asyncio.run(talk()) == [ANSWER] * 9


@pytest.fixture(name="demo", scope="module")
def _demo(demo_home: Path) -> Iterator[str]:
    """Return where ``r1mac serve demo`` listens."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "R1MAC_HOME": str(demo_home), "NO_COLOR": "1"}
    with subprocess.Popen(
        [*COMMAND, "serve", "demo", "--port", "0", "--max-tokens", "24"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stderr is not None
            told = next(found for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            yield told[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.demo
def test_a_real_model_answers_all_three(demo):
    """The same right answer through each API, as it is deterministic without chance; the counts agree."""
    with (
        openai.OpenAI(base_url=f"{demo}/v1", api_key="none", max_retries=0) as gpt,
        anthropic.Anthropic(base_url=demo, api_key="none", max_retries=0) as claude,
        contextlib.closing(ollama.Client(host=demo)) as llama,
    ):
        by_gpt = gpt.chat.completions.create(model="demo", messages=FRANCE, temperature=0)
        by_claude = claude.messages.create(model="demo", messages=FRANCE, max_tokens=24, extra_body=COLD)
        lines = list(llama.chat("demo", FRANCE, options={"temperature": 0}, stream=True))
        counted = claude.messages.count_tokens(model="demo", messages=FRANCE)

    answer = by_gpt.choices[0].message.content
    assert "Paris" in answer
    assert by_claude.content[0].text == answer
    assert "".join(line.message.content for line in lines) == answer
    usage = by_claude.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens == lines[-1].prompt_eval_count
    assert usage.output_tokens == by_gpt.usage.completion_tokens == lines[-1].eval_count
    # The prompt was read for the first of them.
    assert usage.cache_read_input_tokens > 0


@pytest.mark.demo
def test_a_real_model_is_held_to_a_format_by_all_three(demo):
    """Whatever the API calls it, the answer is JSON of the schema."""
    with (
        openai.OpenAI(base_url=f"{demo}/v1", api_key="none", max_retries=0) as gpt,
        anthropic.Anthropic(base_url=demo, api_key="none", max_retries=0) as claude,
        contextlib.closing(ollama.Client(host=demo)) as llama,
    ):
        schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": YES_OR_NO}}
        config = {"format": {"type": "json_schema", "schema": YES_OR_NO}}
        texts = [
            gpt.chat.completions.create(model="demo", messages=FRANCE, response_format=schema, temperature=0)
            .choices[0]
            .message.content,
            claude.messages.create(model="demo", messages=FRANCE, output_config=config, max_tokens=24, extra_body=COLD)
            .content[0]
            .text,
            llama.chat("demo", FRANCE, format=YES_OR_NO, options={"temperature": 0}).message.content,
        ]

    assert len(set(texts)) == 1
    assert isinstance(json.loads(texts[0])["yes"], bool)


@pytest.mark.demo
def test_a_stop_text_and_a_seed(demo):
    """The text that ended an answer is told by name, and a seed gives the same text again."""
    with anthropic.Anthropic(base_url=demo, api_key="none", max_retries=0) as claude:
        stopped = claude.messages.create(
            model="demo", messages=FRANCE, extra_body=COLD, max_tokens=24, stop_sequences=["qqq", "aris"]
        )
    with contextlib.closing(ollama.Client(host=demo)) as llama:
        options = {"temperature": 1.5, "seed": 11, "num_predict": 8}
        first, second = (llama.chat("demo", FRANCE, options=options).message.content for _ in range(2))

    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "aris")
    assert "aris" not in "".join(block.text for block in stopped.content)
    assert first == second
