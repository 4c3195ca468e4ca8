"""quality.json: what is kept beside a model, and what a person is told of it."""

import json
from pathlib import Path

import pytest

from r1mac.formats.quality import (
    QUALITY_NAME,
    Divergence,
    Perplexity,
    Quality,
    Thoughts,
    as_rows,
    load_quality,
    save_quality,
    summary,
)

MADE_WITH = {"r1mac": "0.1.0", "mlx": "0.32.4"}
TEXT = {"text": "r1mac's evaluation text", "text_sha256": "ab" * 32, "tokens": 512, "made_with": MADE_WITH}
READ = Perplexity(perplexity=14.125, **TEXT)
FAR = Divergence(
    reference="org/model",
    revision="56d4",
    reference_perplexity=13.9,
    kl_nats=0.0123,
    kl_p99_nats=0.11,
    same_top=0.932,
    **TEXT,
)
THOUGHTS = Thoughts(
    replies=12,
    right=11,
    thoughts=12,
    closed=12,
    looped=0,
    written_tokens=9000,
    most_tokens=4096,
    seeds=1,
    problems_sha256="cd" * 32,
    made_with=MADE_WITH,
    measured="2026-11-22T16:00:00+00:00",
)


@pytest.mark.parametrize(
    "quality",
    [
        Quality(perplexity=READ, divergence=FAR, thoughts=THOUGHTS),
        Quality(perplexity=READ),
        Quality(thoughts=THOUGHTS),
        Quality(unmeasured="attention over a sliding window is not computed here"),
    ],
)
def test_what_is_written_is_read(quality: Quality, tmp_path: Path) -> None:
    save_quality(tmp_path, quality)

    assert load_quality(tmp_path) == quality
    assert [path.name for path in tmp_path.iterdir()] == [QUALITY_NAME]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        '{"format": 2, "perplexity": {}}',
        '{"format": 1}',
        '{"format": 1, "perplexity": {"perplexity": 3}}',
        '{"format": 1, "divergence": 7, "unmeasured": 7}',
    ],
)
def test_what_cannot_be_read_is_as_if_it_were_not_there(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / QUALITY_NAME).write_text(text)

    assert load_quality(tmp_path) is None


@pytest.mark.parametrize(
    ("field", "value"), [("kl_nats", "small"), ("tokens", 1.5), ("reference", None), ("same_top", True), ("more", 1)]
)
def test_a_part_that_is_not_as_it_was_written_is_left_out(field: str, value: object, tmp_path: Path) -> None:
    save_quality(tmp_path, Quality(perplexity=READ, divergence=FAR))
    data = json.loads((tmp_path / QUALITY_NAME).read_text())
    data["divergence"][field] = value
    (tmp_path / QUALITY_NAME).write_text(json.dumps(data))

    assert load_quality(tmp_path) == Quality(perplexity=READ)


def test_a_newer_measurement_takes_the_place_of_its_kind_alone() -> None:
    old = Quality(perplexity=READ, divergence=FAR, unmeasured="too odd")
    newer = Perplexity(perplexity=15.0, **TEXT)

    merged = old.merged(Quality(perplexity=newer)).merged(Quality(thoughts=THOUGHTS))

    assert merged == Quality(perplexity=newer, divergence=FAR, thoughts=THOUGHTS)


def test_a_person_is_told_all_of_it_in_sentences() -> None:
    rows = dict(as_rows(Quality(perplexity=READ, divergence=FAR, thoughts=THOUGHTS)))

    assert rows["divergence"] == (
        "0.0123 nats from org/model (99 of 100 tokens: below 0.11); the likeliest token is the same for 93.2%"
    )
    assert rows["perplexity"] == "14.12, 13.9 of org/model, on 512 tokens of r1mac's evaluation text"
    assert rows["thoughts"] == (
        "11 of 12 answers are right, 12 of 12 thoughts ended by themselves, none of the replies went in circles"
    )
    assert summary(Quality(perplexity=READ)) == "perplexity 14.12"
    assert summary(Quality(unmeasured="too odd")) == "not measured: too odd"


def test_perplexities_of_other_texts_are_not_put_side_by_side() -> None:
    other = Perplexity(perplexity=9.0, **{**TEXT, "text": "mine.txt", "text_sha256": "ef" * 32})

    rows = dict(as_rows(Quality(perplexity=other, divergence=FAR)))

    assert rows["perplexity"] == "9, on 512 tokens of mine.txt"


def test_a_model_without_thoughts_is_not_reproached_with_none() -> None:
    from dataclasses import replace

    rows = dict(as_rows(Quality(thoughts=replace(THOUGHTS, thoughts=0, closed=0))))

    assert "it writes no thoughts" in rows["thoughts"]
