"""Sources that are quantised already: MLX's own, compressed-tensors, and DeepSeek's FP8 with scales of one byte."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from r1mac.convert.fp8 import powers_of_two
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source, requantization_note
from r1mac.errors import BadCheckpoint, BadRecipe
from tests.adapters import merged_rows
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, hub_weights, write_checkpoint, write_fp8_checkpoint
from tests.fp8_variants import use_power_of_two_scales, write_fp8_matrix
from tests.packed import pack_codes, packed_matrix, write_packed_checkpoint

MODES = {
    **{f"{bits} bits": {"q_bits": bits, "q_group_size": 64} for bits in (2, 3, 4, 5, 6, 8)},
    "groups of 32": {"q_bits": 4, "q_group_size": 32},
    "mixed": {"q_bits": 4, "q_group_size": 64, "quant_predicate": "mixed_3_6"},
    "mxfp4": {"q_mode": "mxfp4", "q_bits": 4, "q_group_size": 32},
    "mxfp8": {"q_mode": "mxfp8", "q_bits": 8, "q_group_size": 32},
    "nvfp4": {"q_mode": "nvfp4", "q_bits": 4, "q_group_size": 16},
}


def _ours(source: Path, folder: Path, *, bits: int) -> dict[str, mx.array]:
    folder.mkdir()
    for _ in convert(open_source(source), plain(bits=bits), folder):
        pass
    return _tensors(folder)


def _tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(path))
    return found


def _mlx_lm(source: Path, folder: Path, **settings: Any) -> Path:
    from mlx_lm.convert import convert as mlx_lm_convert

    with contextlib.redirect_stdout(io.StringIO()):
        mlx_lm_convert(str(source), str(folder), **settings)
    return folder


def _assert_same_bits(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert mx.array_equal(found[name], values), name


@pytest.mark.parametrize("mode", MODES)
def test_dequantising_gives_mlx_lms_bits(mode: str, tmp_path: Path) -> None:
    """A model that ``mlx_lm.convert`` quantised in any mode becomes wide as ``--dequantize`` makes it."""
    source = write_checkpoint(tmp_path / "source", LLAMA)
    quantized = _mlx_lm(source, tmp_path / "quantized", quantize=True, **MODES[mode])

    found = _ours(quantized, tmp_path / "ours", bits=16)

    _assert_same_bits(found, _tensors(_mlx_lm(quantized, tmp_path / "theirs", dequantize=True)))
    config = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert "quantization" not in config
    assert "quantization_config" not in config


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_is_dequantised(kind: str, tmp_path: Path) -> None:
    """Stacked experts and MLA's halves too, which an MLX model has under names of its own."""
    source = write_checkpoint(tmp_path / "source", CONFIGS[kind])
    quantized = _mlx_lm(source, tmp_path / "quantized", quantize=True, q_bits=4)

    found = _ours(quantized, tmp_path / "ours", bits=16)

    expected = _tensors(_mlx_lm(quantized, tmp_path / "theirs", dequantize=True))
    # mlx-lm forgets MLA's halves: it writes them still quantised beside a config.json that says nothing of it.
    for module in [name.removesuffix(".scales") for name in expected if name.endswith(".scales")]:
        assert module.endswith(("embed_q", "unembed_out"))
        parts = (expected.pop(f"{module}.{part}") for part in ("weight", "scales", "biases"))
        expected[f"{module}.weight"] = mx.dequantize(*parts, group_size=64, bits=4)
    _assert_same_bits(found, expected)


def test_quantising_again_is_quantising_what_is_there(tmp_path: Path) -> None:
    """Eight bits made to three are the three bits of the dequantised weights, and the person is told."""
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    quantized = _mlx_lm(source, tmp_path / "quantized", quantize=True, q_bits=8)
    _ours(quantized, tmp_path / "wide", bits=16)

    found = _ours(quantized, tmp_path / "ours", bits=3)

    _assert_same_bits(found, _ours(tmp_path / "wide", tmp_path / "expected", bits=3))
    assert "quality is lost twice" in (requantization_note(open_source(quantized), bits=3) or "")


def test_more_bits_than_there_are_is_refused(tmp_path: Path) -> None:
    """Four bits do not become better in eight; sixteen only write them out, and an unquantised source is no matter."""
    source = write_checkpoint(tmp_path / "source", LLAMA)
    quantized = open_source(_mlx_lm(source, tmp_path / "quantized", quantize=True, q_bits=4))

    with pytest.raises(BadRecipe, match="4 bits already") as caught:
        requantization_note(quantized, bits=8)

    assert "--bits 4" in (caught.value.hint or "")
    assert "stand for" in (requantization_note(quantized, bits=16) or "")
    assert requantization_note(open_source(source), bits=8) is None


def test_codes_and_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A config that is not the weights' own is noticed at the first matrix that contradicts it."""
    source = write_checkpoint(tmp_path / "source", LLAMA)
    quantized = _mlx_lm(source, tmp_path / "quantized", quantize=True, q_bits=4)
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    (quantized / "config.json").write_text(json.dumps({**config, "hidden_size": 192}), encoding="utf-8")

    with pytest.raises(BadCheckpoint, match=r"has codes U32 .* which are not"):
        open_source(quantized)


PACKED = {
    "groups of 32": {"group_size": 32},
    "groups of 128": {"group_size": 128},
    "odd groups": {"group_size": 16},
    "a scale a row": {"group_size": None},
    "zero points": {"group_size": 32, "symmetric": False},
    "zero points a row": {"group_size": None, "symmetric": False},
    "8 bits": {"group_size": 64, "bits": 8},
}


@pytest.mark.parametrize("layout", PACKED)
def test_packed_numbers_are_what_their_definition_says(layout: str, tmp_path: Path) -> None:
    """(code - zero) x scale, for every grouping of compressed-tensors' pack-quantized, in whatever blocks it is read."""
    source, exact = write_packed_checkpoint(tmp_path / "source", LLAMA, **PACKED[layout])

    opened = open_source(source)

    assert opened.quantized_bits == PACKED[layout].get("bits", 4)
    for name, expected in exact.items():
        found = merged_rows(opened, name)
        # mlx-lm's way (code x scale - 8 x scale in bfloat16) rounds twice.
        assert np.allclose(found, expected, rtol=2**-7, atol=np.abs(expected).max() * 2**-8), name


@pytest.mark.parametrize("layout", PACKED)
def test_packed_numbers_are_what_the_library_unpacks(layout: str, tmp_path: Path) -> None:
    """The same beside the compressed-tensors library, where it is installed."""
    torch = pytest.importorskip("torch", reason="torch is a gigabyte that nothing else here needs")
    pytest.importorskip("compressed_tensors", reason="compressed-tensors needs torch")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    settings = {"bits": 4, "symmetric": True, **PACKED[layout]}
    arguments = QuantizationArgs(
        num_bits=settings["bits"],
        symmetric=settings["symmetric"],
        strategy="group" if settings["group_size"] else "channel",
        group_size=settings["group_size"],
    )
    parts, exact = packed_matrix((24, 128), seed=3, **settings)
    state = {name: torch.from_numpy(np.array(part)) for name, part in parts.items() if part.dtype != mx.bfloat16}
    state["weight_scale"] = torch.from_numpy(np.array(parts["weight_scale"].astype(mx.float32)))

    unpacked = PackedQuantizationCompressor.decompress(
        state, QuantizationScheme(targets=["Linear"], weights=arguments)
    )["weight"]

    assert np.allclose(unpacked.float().numpy(), exact, rtol=1e-6)


def test_packed_experts_have_mlx_lms_bits(tmp_path: Path) -> None:
    """Where mlx-lm reads the format too (experts of a deepseek_v3, groups of 32), the values are its own."""
    source, _ = write_packed_checkpoint(tmp_path / "source", DEEPSEEK_V3, group_size=32, only=".experts.")

    found = _ours(source, tmp_path / "ours", bits=16)

    _assert_same_bits(found, _tensors(_mlx_lm(source, tmp_path / "theirs", dequantize=True)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"format": "float-quantized"}, BadRecipe, "float-quantized"),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 3}}}}, BadRecipe, "of 3 bits"),
        ({"quant_method": "bitsandbytes"}, BadRecipe, "bitsandbytes"),
    ],
)
def test_other_quantisations_are_named(change: dict, error: type, words: str, tmp_path: Path) -> None:
    """What is not read is refused by its own name, and the way out is the original weights."""
    source, _ = write_packed_checkpoint(tmp_path / "source", LLAMA, group_size=32)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] |= change
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(error, match=words) as caught:
        open_source(source)

    assert "original weights" in (caught.value.hint or "")


def test_a_shape_that_contradicts_the_codes_is_refused(tmp_path: Path) -> None:
    """weight_shape is believed by no one: it has to agree with the codes."""
    parts, _ = packed_matrix((8, 64), group_size=32)
    weights = {f"lm_head.{part}": array for part, array in parts.items()}
    weights["lm_head.weight_shape"] = mx.array([8, 60], dtype=mx.int64)
    source, _ = write_packed_checkpoint(tmp_path / "source", LLAMA, group_size=32, extra=weights)

    with pytest.raises(BadCheckpoint, match=r"lm_head\.weight_shape says \[8, 60\]"):
        open_source(source).rows("lm_head.weight", 0, 8)


def test_scales_of_one_byte_are_powers_of_two(tmp_path: Path) -> None:
    """DeepSeek's ue8m0 scales: the same weights as with the float32 scales that they stand for."""
    config = {**DEEPSEEK_V3, "num_hidden_layers": 2}
    wide = use_power_of_two_scales(write_fp8_checkpoint(tmp_path / "wide", config), "F32")

    for dtype in ("F8_E8M0", "U8"):
        narrow = use_power_of_two_scales(write_fp8_checkpoint(tmp_path / dtype, config), dtype)
        expected, found = open_source(wide), open_source(narrow)
        assert found.shapes() == expected.shapes()
        for name in expected.shapes():
            assert np.array_equal(merged_rows(found, name), merged_rows(expected, name)), name


def test_every_exponent_has_its_value() -> None:
    """All 256 codes of ue8m0 are 2^(e - 127), the last one no number."""
    values = powers_of_two(np.arange(256, dtype=np.uint8))

    assert np.array_equal(values[:255].astype(np.float64), 2.0 ** (np.arange(255) - 127.0))
    assert np.isnan(values[255])


def test_other_blocks_of_fp8(tmp_path: Path) -> None:
    """A checkpoint whose blocks are not 128 x 128 says so in its config, and is read accordingly."""
    codes = mx.to_fp8(mx.random.normal((64, 128)))
    scales = mx.random.uniform(0.5, 2.0, (2, 4))
    expected = mx.from_fp8(codes, dtype=mx.float32) * mx.repeat(mx.repeat(scales, 32, 0), 32, 1)
    source = write_fp8_matrix(tmp_path / "source", codes, scales, (32, 32))

    found = merged_rows(open_source(source), "one.weight")

    assert np.allclose(found, np.array(expected), rtol=2**-8)


def test_one_safetensors_file_is_a_model(tmp_path: Path) -> None:
    """A file with its config.json beside it is converted like its folder."""
    folder = write_checkpoint(tmp_path / "source", LLAMA, shard_count=1)
    (folder / "model.safetensors.index.json").unlink()
    (file,) = folder.glob("*.safetensors")

    found = _ours(file, tmp_path / "ours", bits=4)

    _assert_same_bits(found, _ours(folder, tmp_path / "expected", bits=4))
    assert (tmp_path / "ours" / "tokenizer.json").is_file()


def test_one_file_of_several_is_not_a_model(tmp_path: Path) -> None:
    """A shard alone lacks the others' tensors: its folder is meant."""
    folder = write_checkpoint(tmp_path / "source", LLAMA)

    with pytest.raises(BadCheckpoint, match="one of 2 files") as caught:
        open_source(folder / "model-00001-of-00002.safetensors")

    assert str(folder) in (caught.value.hint or "")


def test_a_file_without_its_config(tmp_path: Path) -> None:
    """Weights alone do not say what model they are of."""
    mx.save_safetensors(str(tmp_path / "model.safetensors"), hub_weights(LLAMA))

    with pytest.raises(BadCheckpoint, match=r"no config\.json beside model\.safetensors"):
        open_source(tmp_path / "model.safetensors")


def test_codes_are_packed_lowest_bits_first() -> None:
    """The tests' own packing is the documented one: code 0 in the lowest four bits."""
    assert pack_codes(np.array([[1, 2, 0, 0, 0, 0, 0, 15]]), 4).view(np.uint32)[0, 0] == 0xF0000021
