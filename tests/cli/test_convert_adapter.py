"""``r1mac convert --adapter``, and sources that are quantised already, as a user runs them."""

from pathlib import Path

import mlx.core as mx

from tests.adapters import lora_pair, write_peft_adapter
from tests.checkpoints import CONFIGS, write_checkpoint
from tests.cli.conftest import R1mac
from tests.hub_stand_in import StandIn

QUERY = "model.layers.0.self_attn.q_proj"


def _converted(r1mac: R1mac, *arguments: str) -> str:
    done = r1mac("convert", *arguments, "--no-smoke")
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_an_adapter_is_merged_and_its_effect_told(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """The converted model holds the adapter, and says how much of it."""
    adapter = write_peft_adapter(tmp_path / "adapter", lora_pair(QUERY, (128, 128)))
    plain, merged = tmp_path / "plain", tmp_path / "merged"
    _converted(r1mac, str(tiny), "-o", str(plain))

    said = _converted(r1mac, str(tiny), "--adapter", str(adapter), "-o", str(merged))

    assert "the adapter changes 1 tensor, by" in said
    assert "of that is in the converted weights" in said
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (plain, merged))
    assert {name.rpartition(".")[0] for name in before if not mx.array_equal(before[name], after[name])} == {QUERY}


def test_an_untrained_adapter_is_told(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """An adapter of zeros is not merged in silence."""
    pair = lora_pair(QUERY, (128, 128)) | {f"{QUERY}.lora_B.weight": mx.zeros((128, 4))}
    adapter = write_peft_adapter(tmp_path / "adapter", pair)

    said = _converted(r1mac, str(tiny), "--adapter", str(adapter), "-o", str(tmp_path / "out"))

    assert "changes nothing" in said


def test_an_adapter_for_another_model(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """It is refused with the tensor's name and what it was trained on, and nothing is made."""
    adapter = write_peft_adapter(tmp_path / "adapter", lora_pair(QUERY, (256, 256)))

    done = r1mac("convert", str(tiny), "--adapter", str(adapter), "-o", str(tmp_path / "out"))

    assert done.returncode == 7
    assert QUERY in done.stderr
    assert "my-org/base" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_changed_adapter_is_not_gone_on_with(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """Two conversions with different adapters do not share what the first one left."""
    first = write_peft_adapter(tmp_path / "first", lora_pair(QUERY, (128, 128)))
    second = write_peft_adapter(tmp_path / "second", lora_pair(QUERY, (128, 128), seed=5))
    out = tmp_path / "out"
    _converted(r1mac, str(tiny), "--adapter", str(first), "-o", str(out))
    once = (out / "model.safetensors").read_bytes()

    _converted(r1mac, str(tiny), "--adapter", str(second), "-o", str(out), "--force")

    assert (out / "model.safetensors").read_bytes() != once


def test_a_quantised_model_is_made_narrower_or_wide_and_not_wider(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """What is quantised already is said; more bits than it has are refused with what would work."""
    _converted(r1mac, str(tiny), "-o", str(tmp_path / "four"))

    said = _converted(r1mac, str(tmp_path / "four"), "-o", str(tmp_path / "two"), "--bits", "2")
    refused = r1mac("convert", str(tmp_path / "four"), "-o", str(tmp_path / "eight"), "--bits", "8")
    _converted(r1mac, str(tmp_path / "four"), "-o", str(tmp_path / "wide"), "--bits", "16")

    assert "quality is lost twice" in said
    assert refused.returncode == 5
    assert "would only make it larger" in refused.stderr
    assert not (tmp_path / "eight").exists()
    assert mx.load(str(tmp_path / "wide" / "model.safetensors"))[f"{QUERY}.weight"].dtype == mx.bfloat16


def test_one_file_is_a_source(r1mac: R1mac, tmp_path: Path) -> None:
    """A single .safetensors file is converted with the config.json beside it."""
    folder = write_checkpoint(tmp_path / "source", CONFIGS["llama"], shard_count=1)
    (folder / "model.safetensors.index.json").unlink()
    (file,) = folder.glob("*.safetensors")

    _converted(r1mac, str(file), "-o", str(tmp_path / "out"))

    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_an_adapter_for_a_repository(hub: StandIn, r1mac: R1mac, tmp_path: Path) -> None:
    """Weights that come from the Hub and go again: the same merged model, and its effect is still measured."""
    repository = write_checkpoint(hub.folder / "org" / "base", CONFIGS["llama"])
    tensors = lora_pair(QUERY, (128, 128)) | {
        "model.norm.weight": mx.ones((128,)),
        "lm_head.weight": mx.ones((320, 128)),
    }
    adapter = write_peft_adapter(tmp_path / "adapter", tensors)
    local, remote = tmp_path / "local", tmp_path / "remote"
    _converted(r1mac, str(repository), "--adapter", str(adapter), "-o", str(local))

    said = _converted(r1mac, "org/base", "--adapter", str(adapter), "-o", str(remote))

    assert "the adapter changes 3 tensors, by" in said
    assert (remote / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()
