"""The card of a converted model."""

import json
import tomllib
from dataclasses import asdict

import pytest
import yaml

from r1mac.convert.card import CardFacts, format_card, format_recipe, licence_lines
from r1mac.convert.recipe import plain, shipped_recipes
from r1mac.convert.recipe_file import parse_recipe
from tests.goldens import assert_golden

RECIPES = [*shipped_recipes(), plain(bits=4), plain(bits=16), plain(bits="mxfp4"), plain(bits=3, dtype="float16")]


def fields_of(recipe):
    return json.loads(json.dumps(asdict(recipe)))


def facts(**changes):
    recipe = next(recipe for recipe in shipped_recipes() if recipe.name == "r1-671b-2bit")
    given = {
        "title": "r1-671b-2bit",
        "source": "deepseek-ai/DeepSeek-R1",
        "is_repo": True,
        "revision": "56d4cbbb4d29f4355bab4b9a39ccb717a14ad5ad",
        "identity": "ab" * 32,
        "recipe": fields_of(recipe),
        "made_with": {"r1mac": "0.1.0", "mlx": "0.32.4"},
        "weight_bytes": 218_290_000_000,
        "parameter_count": 671_026_404_352,
        "licence": ("license: mit",),
    }
    return CardFacts(**(given | changes))


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_card_of_a_repository():
    """A card says source, commit, recipe, size, versions, licence, and how to run the model."""
    assert_golden("convert/card-671b.md", format_card(facts()))


def test_front_matter_is_what_the_hub_reads():
    """The Hub finds library, licence, and what the model was made from."""
    assert front_matter(format_card(facts())) == {
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "base_model": "deepseek-ai/DeepSeek-R1",
        "base_model_relation": "quantized",
        "license": "mit",
        "tags": ["mlx", "r1mac"],
    }


def test_card_of_a_folder_names_no_repository():
    """What was made from a folder has no base model on the Hub, and its odd name breaks neither table nor code."""
    card = format_card(facts(source="my | `model`\nx", is_repo=False, revision=None, licence=()))

    assert "base_model" not in front_matter(card)
    assert "license" not in front_matter(card)
    assert "| made from | `my / 'model' x` |" in card


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.name}-{recipe.default.bits}")
def test_recipe_in_a_card_can_be_used_again(recipe):
    """The recipe's text in a card, saved as a file, is the recipe."""
    text = format_recipe(fields_of(recipe))
    again = parse_recipe(text, name=recipe.name, where="card")

    assert tomllib.loads(text)
    assert (again.default, again.overrides, again.dtype, again.models) == (
        recipe.default,
        recipe.overrides,
        recipe.dtype,
        recipe.models,
    )


@pytest.mark.parametrize(
    ("card", "lines"),
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# x", ("license: mit",)),
        (
            "---\r\ntags:\r\n- a\r\nlicense: other\r\nlicense_name: llama3.3\r\nlicense_link: LICENSE\r\n---\r\n",
            ("license: other", "license_name: llama3.3", "license_link: LICENSE"),
        ),
        ("---\nlicense:\n- mit\n- apache-2.0\ntags:\n- b\n---\n", ("license:", "- mit", "- apache-2.0")),
        ("# no front matter\nlicense: mit\n", ()),
        ("---\nlicense: mit\n", ()),
        ("", ()),
    ],
)
def test_licence_of_the_source_goes_over(card, lines):
    """The lines of the source's front matter that say its licence are found, and nothing else."""
    assert licence_lines(card) == lines
