"""A conversion's tensors beside those of ``mlx_lm.convert``: the same bits, for every architecture and width."""

import json
from pathlib import Path

import pytest

from r1mac.convert.recipe import plain
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, write_checkpoint, write_fp8_checkpoint
from tests.conversions import assert_identical, by_mlx_lm, by_r1mac, json_in


def _ours(source: Path, folder: Path, *, bits: int, group_size: int = 64) -> Path:
    return by_r1mac(source, folder, plain(bits=bits, group_size=group_size))


def _theirs(source: Path, folder: Path, *, bits: int, group_size: int = 64) -> Path:
    return by_mlx_lm(source, folder, plain(bits=bits, group_size=group_size))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_is_bit_identical_to_mlx_lms(kind: str, bits: int, tmp_path: Path) -> None:
    """A plain conversion of a bfloat16 checkpoint has the very bits that ``mlx_lm.convert`` writes."""
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])

    ours = _ours(source, tmp_path / "ours", bits=bits)

    assert_identical(ours, _theirs(source, tmp_path / "theirs", bits=bits))


@pytest.mark.parametrize("group_size", [32, 128])
def test_every_group_size_is_bit_identical(group_size: int, tmp_path: Path) -> None:
    """Group sizes beside the default change nothing about that; matrices they do not divide stay wide in both."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)

    ours = _ours(source, tmp_path / "ours", bits=4, group_size=group_size)

    assert_identical(ours, _theirs(source, tmp_path / "theirs", bits=4, group_size=group_size))


@pytest.mark.parametrize("bits", [4, 16])
def test_block_fp8_is_bit_identical(bits: int, tmp_path: Path) -> None:
    """DeepSeek's block FP8, partial blocks included, is dequantised to the same bits."""
    config = {**DEEPSEEK_V3, "num_hidden_layers": 2, "vocab_size": 320}
    source = write_fp8_checkpoint(tmp_path / "source", config)
    # mlx-lm drops an extra layer only at index 61, so it is given the checkpoint without one.
    reference = write_fp8_checkpoint(tmp_path / "reference", config)
    _drop_tensors(reference / "model.safetensors", prefix="model.layers.2.")

    ours = _ours(source, tmp_path / "ours", bits=bits)

    assert_identical(ours, _theirs(reference, tmp_path / "theirs", bits=bits))


def test_config_is_mlx_lms(tmp_path: Path) -> None:
    """The converted config.json says what mlx-lm's says, so that both programs load it alike."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)

    ours = _ours(source, tmp_path / "ours", bits=4)

    theirs = _theirs(source, tmp_path / "theirs", bits=4)
    assert json_in(ours / "config.json") == json_in(theirs / "config.json")
    our_index, their_index = (json_in(folder / "model.safetensors.index.json") for folder in (ours, theirs))
    assert our_index["weight_map"] == their_index["weight_map"]
    assert our_index["metadata"] == their_index["metadata"]


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    """Tokenizer files are the source's own: re-saving them is what breaks R1's tokenizers elsewhere."""
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])

    ours = _ours(source, tmp_path / "ours", bits=4)

    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (ours / name).read_bytes() == (source / name).read_bytes()


def _drop_tensors(path: Path, *, prefix: str) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data, kept, offset, parts = content[8 + length :], {}, 0, []
    for name, fields in header.items():
        if name.startswith(prefix):
            continue
        start, stop = fields["data_offsets"]
        parts.append(data[start:stop])
        kept[name] = {**fields, "data_offsets": [offset, offset + stop - start]}
        offset += stop - start
    text = json.dumps(kept).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
