"""Bits are bought where they save the most, and the budget is used up and never passed."""

import itertools
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from r1mac.convert.allocation import allocate, as_recipe, choices_of, recipe_text
from r1mac.convert.recipe_file import parse_recipe
from r1mac.convert.sensitivity import Sensitivity, doubted
from r1mac.plan.memory import Quantization, tensor_bytes

SHAPE = (64, 128)
WIDTHS = [Quantization(bits=bits) for bits in (2, 3, 4, 6, 8)]


def _costs(scale: float) -> dict[Quantization, float]:
    return {width: scale * 4.0**-width.bits for width in WIDTHS}


def _bytes(widths: dict[str, Quantization]) -> int:
    return sum(tensor_bytes(SHAPE, width) for width in widths.values())


def test_what_matters_more_gets_more_bits() -> None:
    options = {name: choices_of(SHAPE, _costs(scale)) for name, scale in {"v": 100.0, "gate": 1.0}.items()}

    widths = allocate(options, 2 * tensor_bytes(SHAPE, Quantization(bits=3)))

    assert widths is not None
    assert widths["v"].bits > widths["gate"].bits


@hypothesis.given(
    scales=st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), share=st.floats(0.0, 1.2), data=st.data()
)
def test_nothing_is_left_that_still_fits(scales: list[float], share: float, data: st.DataObject) -> None:
    options = {str(number): choices_of(SHAPE, _costs(scale)) for number, scale in enumerate(scales)}
    least = _bytes(dict.fromkeys(options, WIDTHS[0]))
    most = _bytes(dict.fromkeys(options, WIDTHS[-1]))
    budget = round(least + share * (most - least))

    widths = allocate(options, budget)

    assert widths is not None
    spent = _bytes(widths)
    assert spent <= budget
    path = data.draw(st.sampled_from(sorted(widths)))
    place = WIDTHS.index(widths[path])
    if place + 1 < len(WIDTHS):
        wider = {**widths, path: WIDTHS[place + 1]}
        assert _bytes(wider) > budget


@hypothesis.given(scales=st.lists(st.floats(0.01, 100), min_size=2, max_size=4), bits=st.sampled_from([2, 3, 4]))
def test_no_uniform_width_of_the_same_bytes_is_better(scales: list[float], bits: int) -> None:
    costs = {str(number): _costs(scale) for number, scale in enumerate(scales)}
    options = {name: choices_of(SHAPE, known) for name, known in costs.items()}
    uniform = dict.fromkeys(options, Quantization(bits=bits))

    widths = allocate(options, _bytes(uniform))

    assert widths is not None
    assert sum(costs[name][width] for name, width in widths.items()) <= 1.0001 * sum(
        costs[name][width] for name, width in uniform.items()
    )


def test_the_best_of_all_allocations_is_found_where_it_uses_the_budget() -> None:
    costs = {name: _costs(scale) for name, scale in {"a": 50.0, "b": 3.0, "c": 0.4}.items()}
    options = {name: choices_of(SHAPE, known) for name, known in costs.items()}
    found = allocate(options, 3 * tensor_bytes(SHAPE, Quantization(bits=4)))
    assert found is not None
    spent = _bytes(found)

    best = min(
        sum(costs[name][width] for name, width in zip(costs, widths, strict=True))
        for widths in itertools.product(WIDTHS, repeat=3)
        if _bytes(dict(zip(costs, widths, strict=True))) <= spent
    )

    assert sum(costs[name][width] for name, width in found.items()) == pytest.approx(best)


def test_a_budget_below_the_smallest_widths_has_no_allocation() -> None:
    options = {"a": choices_of(SHAPE, _costs(1.0))}

    assert allocate(options, tensor_bytes(SHAPE, WIDTHS[0]) - 1) is None


def test_a_width_that_costs_more_and_loses_more_is_never_chosen() -> None:
    poor = Quantization(bits=5)
    costs = {**_costs(1.0), poor: 1.0}

    assert poor not in [choice.width for choice in choices_of(SHAPE, costs)]


def test_the_recipe_gives_every_matrix_its_width(tmp_path: Path) -> None:
    two, three, six = Quantization(bits=2, group_size=128), Quantization(bits=3), Quantization(bits=6)
    widths = {f"model.layers.{layer}.mlp.gate_proj": three for layer in range(4)}
    widths |= {"model.layers.0.self_attn.q_proj": two, "model.layers.1.self_attn.q_proj": three, "lm_head": six}

    recipe = as_recipe(widths, name="mine", summary='for a «test" ', dtype="bfloat16")
    read = parse_recipe(recipe_text(recipe), name="mine", where=str(tmp_path))

    assert {path: read.width_of(path) for path in widths} == widths
    assert read.summary == 'for a «test" '


def test_what_is_half_believed_is_chosen_nearer_to_one_width() -> None:
    paths = {"loud": 64.0, "quiet": 1.0}
    known = Sensitivity(
        width=Quantization(bits=3),
        kl_nats=paths,
        groups={path: path for path in paths},
        loss=dict.fromkeys(paths, _costs(1.0)),
    )

    def spread(told: Sensitivity) -> int:
        options = {path: choices_of(SHAPE, {width: told.cost(path, width) for width in WIDTHS}) for path in paths}
        widths = allocate(options, 2 * tensor_bytes(SHAPE, Quantization(bits=4)))
        assert widths is not None
        return widths["loud"].bits - widths["quiet"].bits

    half = doubted(known, dict.fromkeys(paths, 1))
    assert half.kl_nats["loud"] > half.kl_nats["quiet"]
    assert spread(half) < spread(known)
