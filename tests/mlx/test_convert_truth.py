"""A conversion's tensors beside those of ``mlx_lm.convert``: the same bits, for every architecture and width."""

import contextlib
import io
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, write_checkpoint, write_fp8_checkpoint


def _ours(source: Path, folder: Path, *, bits: int, group_size: int = 64) -> Path:
    folder.mkdir()
    for _ in convert(open_source(source), plain(bits=bits, group_size=group_size), folder):
        pass
    return folder


def _theirs(source: Path, folder: Path, *, bits: int, group_size: int = 64) -> Path:
    from mlx_lm.convert import convert as mlx_lm_convert

    with contextlib.redirect_stdout(io.StringIO()):
        mlx_lm_convert(str(source), str(folder), quantize=bits < 16, q_bits=bits, q_group_size=group_size)
    return folder


def _tensors(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(path))
    return tensors


def _bits_of(values: mx.array) -> np.ndarray:
    return np.array(values.view(mx.uint16) if values.dtype == mx.bfloat16 else values)


def _assert_identical(ours: Path, theirs: Path) -> None:
    our_tensors, their_tensors = _tensors(ours), _tensors(theirs)

    assert our_tensors.keys() == their_tensors.keys()
    for name, expected in their_tensors.items():
        found = our_tensors[name]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        assert np.array_equal(_bits_of(found), _bits_of(expected)), name


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_is_bit_identical_to_mlx_lms(kind: str, bits: int, tmp_path: Path) -> None:
    """A plain conversion of a bfloat16 checkpoint has the very bits that ``mlx_lm.convert`` writes."""
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])

    ours = _ours(source, tmp_path / "ours", bits=bits)

    _assert_identical(ours, _theirs(source, tmp_path / "theirs", bits=bits))


@pytest.mark.parametrize("group_size", [32, 128])
def test_every_group_size_is_bit_identical(group_size: int, tmp_path: Path) -> None:
    """Group sizes beside the default change nothing about that; matrices they do not divide stay wide in both."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)

    ours = _ours(source, tmp_path / "ours", bits=4, group_size=group_size)

    _assert_identical(ours, _theirs(source, tmp_path / "theirs", bits=4, group_size=group_size))


@pytest.mark.parametrize("bits", [4, 16])
def test_block_fp8_is_bit_identical(bits: int, tmp_path: Path) -> None:
    """DeepSeek's block FP8, partial blocks included, is dequantised to the same bits."""
    config = {**DEEPSEEK_V3, "num_hidden_layers": 2, "vocab_size": 320}
    source = write_fp8_checkpoint(tmp_path / "source", config)
    # mlx-lm drops an extra layer only at index 61, so it is given the checkpoint without one.
    reference = write_fp8_checkpoint(tmp_path / "reference", config)
    _drop_tensors(reference / "model.safetensors", prefix="model.layers.2.")

    ours = _ours(source, tmp_path / "ours", bits=bits)

    _assert_identical(ours, _theirs(reference, tmp_path / "theirs", bits=bits))


def test_config_is_mlx_lms(tmp_path: Path) -> None:
    """The converted config.json says what mlx-lm's says, so that both programs load it alike."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)

    ours = _ours(source, tmp_path / "ours", bits=4)

    theirs = _theirs(source, tmp_path / "theirs", bits=4)
    assert _json(ours / "config.json") == _json(theirs / "config.json")
    our_index, their_index = (_json(folder / "model.safetensors.index.json") for folder in (ours, theirs))
    assert our_index["weight_map"] == their_index["weight_map"]
    assert our_index["metadata"] == their_index["metadata"]


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    """Tokenizer files are the source's own: re-saving them is what breaks R1's tokenizers elsewhere."""
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])

    ours = _ours(source, tmp_path / "ours", bits=4)

    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (ours / name).read_bytes() == (source / name).read_bytes()


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


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
