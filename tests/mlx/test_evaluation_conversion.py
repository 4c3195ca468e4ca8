"""What a conversion measures of its result, and where it stands then."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.errors import R1MacError
from r1mac.formats.quality import Quality, load_quality
from r1mac.machine.fake import FakeMachine
from r1mac.machine.imagined import mac
from r1mac.prepare.conversion import Manner, Output, Provenance, convert_to_folders
from r1mac.prepare.files import Note, Progress
from tests.adapters import lora_pair, write_peft_adapter
from tests.checkpoints import DEEPSEEK_V3, LLAMA, hub_weights, write_checkpoint, write_fp8_checkpoint

MAC = mac("Apple M3 Max", memory_gib=64)


def _converted(source: Any, folders: dict[int, Path], **options: Any) -> list[Any]:
    outputs = [Output(plain(bits=bits), folder) for bits, folder in folders.items()]
    provenance = Provenance(title="it", source=source.description, **options.pop("provenance", {}))
    manner = Manner(measures=True, **options)
    return list(convert_to_folders(source, outputs, provenance, FakeMachine(MAC), manner))


def _quality(folder: Path) -> Quality:
    found = load_quality(folder)
    assert found is not None
    return found


def test_every_width_is_measured_and_says_so_on_its_card(tmp_path: Path) -> None:
    source = open_source(write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3))
    folders = {bits: tmp_path / f"out-{bits}" for bits in (2, 4)}

    events = _converted(source, folders)

    far = {bits: _quality(folder).divergence for bits, folder in folders.items()}
    assert far[2].kl_nats > 2 * far[4].kl_nats > 0
    assert far[2].reference == "source"
    assert far[2].reference_perplexity == far[4].reference_perplexity
    assert any(isinstance(event, Progress) and event.task == "measure" for event in events)
    for bits, folder in folders.items():
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"| divergence | {far[bits].kl_nats:.4g} nats from source" in card
        assert any(isinstance(event, Note) and f"{far[bits].kl_nats:.4g} nats" in event.text for event in events)
        assert "quality.json" not in json.loads((folder / "r1mac.json").read_text())["files"]


def test_the_same_is_measured_each_time(tmp_path: Path) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", LLAMA))
    for name in ("one", "two"):
        _converted(source, {3: tmp_path / name})

    texts = [(tmp_path / name / "quality.json").read_bytes() for name in ("one", "two")]

    assert texts[0] == texts[1]
    assert b'"measured": null' in texts[0]


def test_a_model_that_is_only_translated_loses_nothing(tmp_path: Path) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", LLAMA))

    _converted(source, {16: tmp_path / "out"})

    assert _quality(tmp_path / "out").divergence.kl_nats == pytest.approx(0, abs=1e-6)


def test_an_adapter_is_part_of_what_the_result_is_compared_with(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", LLAMA)
    pair = lora_pair("model.layers.0.mlp.down_proj", (128, 256))
    adapter = write_peft_adapter(tmp_path / "adapter", pair, target_modules=["down_proj"])
    _converted(open_source(base), {16: tmp_path / "plain"})
    _converted(open_source(base, [adapter]), {16: tmp_path / "adapted"})

    plainly, adapted = _quality(tmp_path / "plain").divergence, _quality(tmp_path / "adapted").divergence

    assert adapted.reference == "base + adapter"
    assert adapted.reference_perplexity != plainly.reference_perplexity
    # Merged weights are rounded to 16 bits, and that is all.
    assert adapted.kl_nats < 1e-3


def test_where_the_weights_have_gone_the_result_is_read_alone(tmp_path: Path) -> None:
    class Feed:
        def begin(self, *_: Any) -> list[Any]:
            return []

        def ready(self, _: Any) -> list[Any]:
            return []

        def release(self, _: Any) -> None:
            pass

    source = open_source(write_checkpoint(tmp_path / "source", LLAMA))

    _converted(source, {4: tmp_path / "out"}, provenance={"feed": Feed(), "repo": "org/it", "revision": "56d4"})

    found = _quality(tmp_path / "out")
    assert found.divergence is None
    assert found.perplexity.perplexity > 1
    assert "| perplexity |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 16}, "sliding window"),
    ],
)
def test_a_model_too_odd_to_be_measured_is_converted_and_its_card_says_why(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", {**LLAMA, **changes}))

    _converted(source, {4: tmp_path / "out"})

    assert said in str(_quality(tmp_path / "out").unmeasured)
    assert "| quality | not measured:" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_model_without_a_tokenizer_is_not_measured(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", LLAMA)
    (folder / "tokenizer.json").unlink()

    _converted(open_source(folder), {4: tmp_path / "out"})

    assert "tokenizer.json" in str(_quality(tmp_path / "out").unmeasured)


def test_nothing_is_measured_where_that_is_not_asked_for(tmp_path: Path) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", LLAMA))
    outputs = [Output(plain(bits=4), tmp_path / "out")]

    for _ in convert_to_folders(source, outputs, Provenance(title="it", source="it"), FakeMachine(MAC), Manner()):
        pass

    assert load_quality(tmp_path / "out") is None
    assert "divergence" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_little_memory_reads_less(tmp_path: Path) -> None:
    source = open_source(write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3))
    _converted(source, {4: tmp_path / "usual"})
    _converted(source, {4: tmp_path / "little"}, memory_bytes=113 * 2**20)

    tokens = [_quality(tmp_path / name).perplexity.tokens for name in ("usual", "little")]

    assert 16 <= tokens[1] < tokens[0]


def test_weights_that_are_not_finite_fail_before_anything_is_measured(tmp_path: Path) -> None:
    weights = {"model.norm.weight": mx.full((128,), mx.inf, dtype=mx.bfloat16)}
    folder = write_checkpoint(tmp_path / "source", LLAMA, weights={**hub_weights(LLAMA), **weights})

    with pytest.raises(R1MacError, match="not finite"):
        _converted(open_source(folder), {4: tmp_path / "out"})
    assert not (tmp_path / "out").exists()
