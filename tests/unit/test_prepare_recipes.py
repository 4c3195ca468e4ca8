"""Plan, run and convert mean the same weights by a model's name and --bits."""

import json

import pytest

from r1mac import settings as settings_module
from r1mac.catalog.models import all_models, find
from r1mac.convert.recipe import choose_recipe, find_recipe
from r1mac.errors import BadRecipe
from r1mac.machine.fake import LINUX_64, M3_ULTRA_512, M5_ULTRA_256
from r1mac.plan.memory import FLOAT_WIDTHS, Quantization, kv_bytes_per_token, weight_bytes
from r1mac.plan.recipe import read_bytes_per_token, recipe_bytes
from r1mac.plan.speed import forecast
from r1mac.prepare.family import judge_family
from r1mac.prepare.planning import judge
from r1mac.prepare.recipes import judge_recipes
from r1mac.prepare.target import resolve
from tests.checkpoints import CONFIGS


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("R1MAC_HOME", str(tmp_path / "home"))


def judged(name, hardware=M3_ULTRA_512, **flags):
    """Judge a name as the command line would."""
    chosen = settings_module.load(**flags)
    return judge(resolve(name, chosen), chosen, hardware)


def test_what_is_converted_is_planned_by_its_recipe():
    """No ready 2-bit 671B is on the Hub: the plan counts the experts at 2 bits, the rest at 6, and what is read."""
    recipe, arch = find_recipe("r1-671b-2bit"), find("671b").arch

    judgement = judged("671b", bits=2)

    assert judgement.wish.weights.stored_bytes == recipe_bytes(arch, recipe)
    by_hand = forecast(
        arch,
        M3_ULTRA_512,
        stored_bytes=recipe_bytes(arch, recipe),
        read_bytes=read_bytes_per_token(arch, recipe),
        kv_bytes_per_token=kv_bytes_per_token(arch),
        step_tokens=judgement.plan.prefill_step_tokens,
    )
    assert judgement.speed.decode_tokens_per_s(0) == by_hand.decode_tokens_per_s(0)


@pytest.mark.parametrize(("name", "bits"), [("671b", 4), ("r1-jan", 3), ("70b", 3), ("8b", 8)])
def test_what_is_fetched_ready_is_planned_as_it_is(name, bits):
    """A published repository has one width, though converting would take the model's own recipe."""
    spec = find(name)
    assert bits in spec.mlx_repos

    assert judged(name, bits=bits).wish.weights.stored_bytes == weight_bytes(spec.arch, Quantization(bits))


@pytest.mark.parametrize("spec", [model for model in all_models() if model.is_member], ids=lambda model: model.key)
def test_the_planned_size_is_that_of_the_conversion(spec):
    """At every width that has to be converted, plan and `r1mac convert` take the same recipe."""
    for bits in (2, 3, 6, 8, 16):
        if bits not in spec.mlx_repos:
            recipe = choose_recipe(bits=str(bits), spec=spec)
            assert judged(spec.alias, bits=bits).wish.weights.stored_bytes == recipe_bytes(spec.arch, recipe)


def test_the_familys_table_says_what_single_plans_say():
    """Each row of `r1mac plan` has the weights and the speed of `r1mac plan MODEL --bits N`."""
    for row in judge_family(M3_ULTRA_512, settings_module.load()):
        alone = judged(row.wish.name, bits=row.wish.target.bits)

        assert row.wish.weights == alone.wish.weights
        assert row.speed == alone.speed


def test_a_mixed_model_on_this_disk_is_forecast_by_what_it_reads(tmp_path):
    """Its config.json says the widths: wide attention beside narrow experts is slower than the mean width tells."""
    from r1mac.formats.safetensors import TensorLayout, lay_out

    folder = tmp_path / "mine"
    folder.mkdir()
    config = CONFIGS["deepseek_v3"]
    narrow = {"model.layers.1.mlp.switch_mlp.gate_proj": {"bits": 2, "group_size": 64}}

    def read_bytes(quantization):
        text = json.dumps({**config, "quantization": quantization})
        (folder / "config.json").write_text(text, encoding="utf-8")
        header, _ = lay_out([TensorLayout("model.norm.weight", "BF16", (256,))], {})
        (folder / "model.safetensors").write_bytes(header + bytes(512))
        return judged(str(folder)).wish.weights.read_bytes

    general = {"bits": 8, "group_size": 64, "mode": "affine"}
    mixed = read_bytes({**general, **narrow})

    assert mixed == pytest.approx(read_bytes({**general, "lm_head": general, **narrow}))
    assert read_bytes({**general, "lm_head": False, **narrow}) > mixed
    assert read_bytes(general) is None


def test_the_command_line_chooses():
    """--bits means the model's own recipe, --group-size and «plain» one width for all, --dtype goes with either."""
    spec = find("671b")

    assert choose_recipe(spec=spec).name == "r1-671b-4bit"
    assert choose_recipe(bits="2", spec=spec).name == "r1-671b-2bit"
    assert choose_recipe(bits="2", dtype="float16", spec=spec).dtype == "float16"
    assert choose_recipe(bits="2", group_size=64, spec=spec).name == "plain"
    assert choose_recipe(named="plain", bits="2", spec=spec).default == Quantization(2)
    assert choose_recipe(bits="2").default == Quantization(2)
    assert choose_recipe(bits="3", spec=find("demo")).default == Quantization(3, 32)
    assert choose_recipe(bits="mxfp4", spec=spec).default == FLOAT_WIDTHS["mxfp4"]
    assert choose_recipe(named="r1-671b-3bit-dq3", dtype="float16").dtype == "float16"
    with pytest.raises(BadRecipe, match="says all widths itself"):
        choose_recipe(named="r1-671b-2bit", bits="2")


@pytest.mark.parametrize("hardware", [M3_ULTRA_512, M5_ULTRA_256, LINUX_64], ids=["512", "256", "linux"])
def test_the_list_agrees_with_the_plan(hardware):
    """A recipe's row fits, and is as fast, as the plan of the same weights says."""
    for judged_recipe in judge_recipes(hardware, find("r1-zero-671b")):
        recipe = judged_recipe.recipe
        if recipe.automatic:
            planned = judged("zero", hardware, bits=recipe.nominal_bits)

            assert judged_recipe.judgement.plan == planned.plan
            assert judged_recipe.judgement.speed == planned.speed


def test_the_list_has_every_recipe_of_a_model_once():
    """The smaller the lower, nothing twice, and without a model each shape's own."""
    rows = list(judge_recipes(M3_ULTRA_512, find("671b")))
    names = [(row.recipe.name, row.recipe.default) for row in rows]
    sizes = [row.judgement.wish.weights.stored_bytes for row in rows]

    assert len(set(names)) == len(names) == 9 + 5
    assert sizes == sorted(sizes, reverse=True)
    assert {row.spec.key for row in judge_recipes(M3_ULTRA_512)} == {
        "r1-distill-1.5b", "r1-distill-7b", "r1-0528-8b", "r1-distill-8b-llama", "r1-distill-14b", "r1-distill-32b",
        "r1-distill-70b", "r1-671b",
    }  # fmt: skip
