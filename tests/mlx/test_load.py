"""Loading: what the weights become, and every folder that is no whole model refused in one sentence."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.engine.config import config_changes
from r1mac.engine.layers.compute import prepare_weights
from r1mac.engine.load import Engine, load_engine
from r1mac.engine.request import GenerateRequest, Message
from r1mac.errors import BadCheckpoint
from r1mac.mlx_lm_api import load_lazily, model_skeleton
from r1mac.plan.compute import Compute
from tests.checkpoints import CONFIGS, DEEPSEEK_V3, LLAMA, QWEN3, write_checkpoint
from tests.generators import told_and_value

PROMPT = mx.array([[0, 258, 40, 41, 42, 259, 260, 3]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Return a function that gives the converted checkpoint of an architecture at some bits; 0 is the source."""
    made: dict[tuple[str, int], Path] = {}

    def folder(kind: str, bits: int) -> Path:
        if (kind, bits) not in made:
            made[kind, bits] = tmp_path_factory.mktemp(f"{kind}-{bits}")
            if bits == 0:
                write_checkpoint(made[kind, bits], CONFIGS[kind])
            else:
                for _ in convert(open_source(folder(kind, 0)), plain(bits=bits, group_size=64), made[kind, bits]):
                    pass
        return made[kind, bits]

    return folder


def _load(folder: Path, compute: Compute = Compute.FLOAT32) -> tuple[Engine, list[tuple[int, int]]]:
    """Return the engine and the progress that was told."""
    told, engine = told_and_value(load_engine(folder, compute=compute, context_tokens=100, prefill_step_tokens=16))
    return engine, told


def _logits(model: nn.Module) -> np.ndarray:
    return np.array(model(PROMPT).astype(mx.float32))


def _kinds(model: nn.Module) -> set[str]:
    return {type(module).__name__ for _, module in model.named_modules()}


def _types(model: nn.Module) -> set[Any]:
    return {values.dtype for _, values in tree_flatten(model.parameters())}


# Every quantised class that the four architectures have.
QUANTIZED = {
    "llama": {"QuantizedLinear", "QuantizedEmbedding"},
    "qwen2": {"QuantizedLinear", "QuantizedEmbedding"},
    "qwen3": {"QuantizedLinear", "QuantizedEmbedding"},
    "deepseek_v3": {"QuantizedLinear", "QuantizedEmbedding", "QuantizedSwitchLinear", "QuantizedMultiLinear"},
}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", CONFIGS)
def test_dequantised_weights_compute_the_same(kind: str, bits: int, folders: Callable[[str, int], Path]) -> None:
    """A model dequantised to float32 gives the logits of the quantised one, and no quantised module is left in it."""
    quantised, _ = _load(folders(kind, bits), Compute.FLOAT32)

    dequantised, _ = _load(folders(kind, bits), Compute.DEQUANTIZED)

    assert _kinds(quantised.model) >= QUANTIZED[kind]
    assert not any("Quantized" in name for name in _kinds(dequantised.model))
    assert _types(dequantised.model) == {mx.float32}
    assert np.abs(_logits(dequantised.model) - _logits(quantised.model)).max() < 1e-4
    assert np.abs(_logits(dequantised.model)).max() > 0.1


@pytest.mark.parametrize("kind", CONFIGS)
def test_float32_changes_scales_and_not_codes(kind: str, folders: Callable[[str, int], Path]) -> None:
    """In float32 every value but the codes is float32, and the logits are near those of the stored type."""
    stored, _ = _load(folders(kind, 4), Compute.AS_STORED)

    wide, _ = _load(folders(kind, 4), Compute.FLOAT32)

    assert _types(wide.model) == {mx.float32, mx.uint32}
    assert _kinds(wide.model) == _kinds(stored.model)
    # The median, since a rounded router may choose another expert for a token.
    difference = np.median(np.abs(_logits(wide.model) - _logits(stored.model)))
    assert 0 < difference < 0.02 * np.abs(_logits(wide.model)).max()


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_as_stored_leaves_every_type(kind: str, bits: int, folders: Callable[[str, int], Path]) -> None:
    """A model that computes as stored has the names, types and values of its files; routers alone are widened."""
    engine, _ = _load(folders(kind, bits), Compute.AS_STORED)

    loaded = dict(tree_flatten(engine.model.parameters()))
    stored: dict[str, mx.array] = {}
    for path in folders(kind, bits).glob("model*.safetensors"):
        stored |= mx.load(str(path))
    assert {name: values.dtype for name, values in loaded.items()} == {
        name: mx.float32 if name.endswith("mlp.gate.weight") else values.dtype for name, values in stored.items()
    }
    assert all(bool(mx.array_equal(values, stored[name]).item()) for name, values in loaded.items())


@pytest.mark.parametrize("kind", CONFIGS)
def test_sixteen_bits_are_the_sources_values(kind: str, folders: Callable[[str, int], Path]) -> None:
    """A model converted at 16 bits gives exactly the logits of the Hub's own files."""
    source, _ = _load(folders(kind, 0))

    converted, _ = _load(folders(kind, 16))

    assert np.array_equal(_logits(converted.model), _logits(source.model))


@pytest.mark.parametrize("compute", list(Compute))
@pytest.mark.parametrize(("kind", "layers"), [("llama", 2), ("deepseek_v3", 3)])
def test_progress_counts_the_layers(
    kind: str, layers: int, compute: Compute, folders: Callable[[str, int], Path]
) -> None:
    """Loading tells each layer once, in order."""
    _, told = _load(folders(kind, 4), compute)

    assert told == [(index + 1, layers) for index in range(layers)]


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_other_quantisation_modes_are_dequantised_too(mode: str) -> None:
    """MLX's floating-point modes have no biases; they too become plain float32 matrices of the same values."""
    mx.random.seed(0)
    models = [model_skeleton({**LLAMA, "num_hidden_layers": 1}) for _ in range(2)]
    models[1].update(models[0].parameters())
    for model in models:
        nn.quantize(model, mode=mode, bits=8 if mode == "mxfp8" else 4, group_size=16 if mode == "nvfp4" else 32)

    for model, compute in zip(models, (Compute.FLOAT32, Compute.DEQUANTIZED), strict=True):
        for _ in prepare_weights(model, compute):
            pass

    assert not any("Quantized" in name for name in _kinds(models[1]))
    assert np.abs(_logits(models[0]) - _logits(models[1])).max() < 1e-4


@pytest.mark.parametrize("compute", list(Compute))
def test_a_loaded_engine_answers(compute: Compute, folders: Callable[[str, int], Path]) -> None:
    """Whatever the weights became, a session of the engine answers within the engine's limits."""
    engine, _ = _load(folders("qwen2", 4), compute)

    events = list(engine.session().generate(GenerateRequest(messages=(Message("user", "Hi"),), max_tokens=3)))

    assert events[-1].stats.generated_tokens in {1, 2, 3}  # type: ignore[union-attr]
    assert (engine.context_tokens, engine.prefill_step_tokens) == (100, 16)


# --- folders that are no whole model ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, folders: Callable[[str, int], Path]) -> Path:
    """A converted llama that a test may damage."""
    return Path(shutil.copytree(folders("llama", 4), tmp_path / "model"))


def _weights_file(folder: Path) -> Path:
    return next(folder.glob("model*.safetensors"))


def _edit_weights(folder: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    path = _weights_file(folder)
    weights = mx.load(str(path))
    mx.eval(weights)
    change(weights)
    path.unlink()
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(config), encoding="utf-8")


NORM = "model.layers.1.input_layernorm.weight"


def _cut(folder: Path) -> None:
    path = _weights_file(folder)
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    _weights_file(folder).write_bytes(_weights_file(folder).read_bytes()[:50])


def _unreadable_type(folder: Path) -> None:
    path = _weights_file(folder)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[NORM] |= {"dtype": "F64", "shape": [header[NORM]["shape"][0] // 4]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _stray_file(folder: Path) -> None:
    mx.save_safetensors(str(folder / "model-old.safetensors"), {NORM: mx.zeros((128,))})


def _stray_damaged_file(folder: Path) -> None:
    (folder / "model-00009-of-00009.safetensors").write_bytes(b"cut")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: _edit_weights(folder, lambda weights: weights.pop(NORM)), "Missing 1 parameters"),
        (
            lambda folder: _edit_weights(folder, lambda weights: weights.pop("model.layers.0.mlp.up_proj.scales")),
            "whole 'llama'",
        ),
        (
            lambda folder: _edit_weights(folder, lambda weights: weights.update(more=mx.zeros((2,)))),
            "1 parameters not in model",
        ),
        (lambda folder: _edit_weights(folder, lambda weights: weights.update({NORM: mx.zeros((64,))})), "shape"),
        (_cut, "safetensors"),
        (_unreadable_type, "F64"),
        (_cut_header, "safetensors"),
        (_stray_file, "model-old.safetensors, which its index does not name"),
        (_stray_damaged_file, "which its index does not name"),
        (lambda folder: _weights_file(folder).unlink(), "lacks model"),
        (lambda folder: _edit_config(folder, model_file="evil.py"), "wants to run 'evil.py'"),
        (lambda folder: _edit_config(folder, model_type="no_such_model"), "no_such_model"),
        (lambda folder: _edit_config(folder, model_type="../../evil"), "evil"),
        (lambda folder: _edit_config(folder, num_hidden_layers=3), "whole 'llama'"),
        (lambda folder: _edit_config(folder, num_hidden_layers="two"), "whole 'llama'"),
        (lambda folder: _edit_config(folder, num_attention_heads=0), "whole 'llama'"),
        (lambda folder: _edit_config(folder, hidden_size=-1), "whole 'llama'"),
        (lambda folder: _edit_config(folder, hidden_size=None), "whole 'llama'"),
        (lambda folder: _edit_config(folder, rope_scaling={"type": "unheard of"}), "unheard of"),
        (lambda folder: _edit_config(folder, rope_scaling={"type": "linear"}), "factor"),
        (lambda folder: _edit_config(folder, rope_scaling={"type": "yarn", "attn_factor": 1.0}), "factor"),
        (
            lambda folder: _edit_config(folder, rope_scaling={"type": "yarn", "attn_factor": 1.0, "factor": 0}),
            "whole 'llama'",
        ),
        (lambda folder: _edit_config(folder, rope_scaling="yarn"), "whole 'llama'"),
        (lambda folder: _edit_config(folder, quantization={"bits": 4}), "group_size"),
        (lambda folder: _edit_config(folder, vocab_size=100), "262 tokens and the model 100"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not an object"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% if"), "not valid"),
    ],
)
def test_a_folder_that_is_no_whole_model(damage: Callable[[Path], object], words: str, folder: Path) -> None:
    """Every damage is a BadCheckpoint of one sentence that names the folder's fault, and says what would help."""
    damage(folder)

    with pytest.raises(BadCheckpoint, match=words) as caught:
        _load(folder)

    assert "\n" not in caught.value.problem
    assert len(caught.value.problem) < 400
    assert caught.value.hint


def test_a_missing_expert_is_a_bad_checkpoint(tmp_path: Path, folders: Callable[[str, int], Path]) -> None:
    """An expert that is missing among the Hub's own files, which mlx-lm stacks, is told like any other tensor."""
    broken = Path(shutil.copytree(folders("deepseek_v3", 0), tmp_path / "model"))
    index = json.loads((broken / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    name = "model.layers.1.mlp.experts.7.up_proj.weight"
    path = broken / index[name]
    weights = mx.load(str(path))
    mx.eval(weights)
    weights.pop(name)
    path.unlink()
    mx.save_safetensors(str(path), weights)

    with pytest.raises(BadCheckpoint, match=r"whole 'deepseek_v3' model: .*experts\.7\.up_proj"):
        _load(broken)


# --- R1-0528-Qwen3-8B's YaRN --------------------------------------------------------------------------------------

# What its config.json says: 0.8782 x (0.1 x ln 4 + 1) = 1.0.
YARN_0528 = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "attn_factor": 0.8782488562869419,
}


def _rope(config: dict[str, Any]) -> Any:
    return model_skeleton(config).layers[0].self_attn.rope


@pytest.mark.parametrize(
    ("scaling", "mscale"),
    [
        (YARN_0528, 1.0),
        ({**YARN_0528, "attn_factor": 1.0}, 1.0),
        ({"type": "yarn", "factor": 4.0, "attention_factor": 1.0}, 1.0),
        ({key: value for key, value in YARN_0528.items() if key != "attn_factor"}, 0.1 * math.log(4) + 1),
        ({"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
    ],
)
def test_yarn_scales_attention_as_the_config_asks(scaling: dict[str, Any], mscale: float) -> None:
    """The rope module that mlx-lm builds has the attention factor that config.json means."""
    config = {**QWEN3, "rope_scaling": scaling}

    rope = _rope({**config, **config_changes(config)})

    assert type(rope).__name__ == "YarnRoPE"
    assert rope.mscale == pytest.approx(mscale, rel=1e-6)


def test_without_the_change_mlx_lm_scales_twice() -> None:
    """mlx-lm alone still gets R1-0528-Qwen3-8B wrong; when this fails, ``config_changes`` can go."""
    assert _rope({**QWEN3, "rope_scaling": YARN_0528}).mscale == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        DEEPSEEK_V3,
        {**LLAMA, "rope_scaling": None},
        {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
        {**DEEPSEEK_V3, "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}},
        {**QWEN3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.5}},
    ],
)
def test_other_configs_are_left_alone(config: dict[str, Any]) -> None:
    """Nothing is changed where mlx-lm understands the config, or where no change would be right."""
    assert config_changes(config) == {}


def test_yarn_reaches_the_loaded_model(folder: Path) -> None:
    """The change is made when a model is loaded, not only when it is asked for."""
    _edit_config(folder, rope_scaling=YARN_0528)

    engine, _ = _load(folder)

    assert engine.model.layers[0].self_attn.rope.mscale == pytest.approx(1.0)
    # Nothing about it is left to chance: without the change the same folder has the wrong factor.
    assert load_lazily(folder, {}).layers[0].self_attn.rope.mscale > 1.1


def test_a_rotary_base_that_transformers_5_saved_is_found():
    """Its config.json has the base below rope_parameters, where mlx-lm does not look; R1's is not the default."""
    config = {"rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"}}

    assert config_changes(config) == {"rope_theta": 500_000.0}


def test_a_stretched_rotary_embedding_that_transformers_5_saved_is_found():
    parameters = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}

    changes = config_changes({"rope_parameters": parameters})

    assert changes["rope_theta"] == 1e4
    assert changes["rope_scaling"]["factor"] == 4.0
    assert changes["rope_scaling"]["mscale"] == 1.0
