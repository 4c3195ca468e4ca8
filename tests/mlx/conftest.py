"""What tests of sessions share: small models of every architecture, converted and loaded once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from r1mac.convert.pipeline import convert
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.engine.load import Engine
from tests.checkpoints import CONFIGS, write_checkpoint
from tests.sessions import load


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Return a function that gives the converted checkpoint of an architecture at some bits, to be read only."""
    made: dict[tuple[str, int], Path] = {}

    def folder(kind: str, bits: int) -> Path:
        if (kind, bits) not in made:
            source = write_checkpoint(tmp_path_factory.mktemp("source"), CONFIGS[kind])
            made[kind, bits] = tmp_path_factory.mktemp(f"{kind}-{bits}")
            for _ in convert(open_source(source), plain(bits=bits, group_size=64), made[kind, bits]):
                pass
        return made[kind, bits]

    return folder


@pytest.fixture(scope="module")
def engines(folders: Callable[[str, int], Path]) -> Callable[..., Engine]:
    """Return a function that gives the loaded model of an architecture at some bits, in float32."""
    loaded: dict[tuple[str, int], Engine] = {}

    def engine(kind: str = "llama", bits: int = 16) -> Engine:
        if (kind, bits) not in loaded:
            loaded[kind, bits] = load(folders(kind, bits))
        return loaded[kind, bits]

    return engine
