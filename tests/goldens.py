"""Golden files (tests/golden): what r1mac printed when a person last read it. ``UPDATE_GOLDEN=write`` writes them anew."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def assert_golden(name: str, text: str) -> None:
    """Compare *text* with the golden file *name*, such as ``"plan/m4-16gb.txt"``."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path} is missing; UPDATE_GOLDEN=write makes it, to be read before it is kept"
    assert text == path.read_text(encoding="utf-8")
