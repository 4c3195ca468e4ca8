"""The image of models by size and divergence."""

from xml.etree import ElementTree as ET

import pytest

from r1mac.prepare.standings import Standing
from r1mac.ui.quality_plot import draw

SVG = "{http://www.w3.org/2000/svg}"


def _numbers(standings: list[Standing]) -> list[tuple[float, float]]:
    tree = ET.fromstring(draw(standings, reference="r1"))
    return [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in tree.iter(f"{SVG}circle")]


def test_bytes_go_across_evenly_and_ten_times_the_divergence_goes_up_evenly() -> None:
    one, two, four = _numbers(
        [Standing("a", 10**9, 0.5), Standing("b", 2 * 10**9, 0.05), Standing("c", 4 * 10**9, 0.005)]
    )

    assert four[0] - two[0] == pytest.approx(2 * (two[0] - one[0]), abs=0.3)
    assert two[1] - one[1] == pytest.approx(four[1] - two[1], abs=0.3)
    assert one[1] < two[1] < four[1]


@pytest.mark.parametrize(
    "standings",
    [
        [Standing("only", 671 * 10**9, 1.0)],
        [Standing("nothing lost", 1, 0.0), Standing("all lost", 10**12, 14.0)],
        [Standing("<&\"'>", 90_000_000, 0.1)],
    ],
)
def test_every_model_lies_inside_the_image(standings: list[Standing]) -> None:
    places = _numbers(standings)

    assert len(places) == len(standings)
    assert all(70 <= x <= 700 and 50 <= y <= 390 for x, y in places)
    assert all(standing.name in ET.fromstring(draw(standings, reference="r")).itertext() for standing in standings)
