"""``r1mac eval --plot``: models of one original as an image."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.cli.conftest import R1mac

SVG = "{http://www.w3.org/2000/svg}"


def test_conversions_of_one_model_are_drawn_by_size_and_divergence(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    made = tmp_path / "made"
    done = r1mac("convert", str(tiny), "-o", str(made / "{bits}&more"), "--bits", "2,4", "--no-smoke", "-q")
    assert done.returncode == 0, done.stderr
    (made / "stranger").mkdir()
    other = json.loads((made / "4&more" / "quality.json").read_text())
    other["divergence"]["reference"] = "another model"
    (made / "stranger" / "quality.json").write_text(json.dumps(other))
    image = tmp_path / "plot.svg"

    done = r1mac("eval", str(made / "4&more"), "--no-text", "--no-thoughts", "--plot", str(image))

    assert done.returncode == 0, done.stderr
    assert "nats from" in done.stdout
    tree = ET.parse(image)
    told = [element.findtext(f"{SVG}title", "") for element in tree.iter(f"{SVG}circle")]
    assert [text.partition(":")[0] for text in told] == ["2&more", "4&more"]
    two, four = tree.iter(f"{SVG}circle")
    assert float(two.get("cx", "")) < float(four.get("cx", ""))
    assert float(two.get("cy", "")) < float(four.get("cy", "")), "what loses more stands higher"


def test_a_model_that_was_not_compared_is_not_drawn(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    done = r1mac("eval", str(tiny), "--no-text", "--no-thoughts", "--plot", str(tmp_path / "plot.svg"))

    assert done.returncode == 7
    assert "--against" in done.stderr
    assert not (tmp_path / "plot.svg").exists()
