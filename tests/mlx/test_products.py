"""Products with the matrices of a stack, read together or one by one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from r1mac.convert.float_rows import FloatRows
from r1mac.convert.grouped_rows import Tokens
from r1mac.convert.pipeline import convert
from r1mac.convert.products import Products
from r1mac.convert.recipe import plain
from r1mac.convert.sources import open_source
from r1mac.convert.stored import RawTensor
from tests.checkpoints import DEEPSEEK_V3, write_checkpoint

NUMBERS = np.random.default_rng(5)
NAMES = [f"model.layers.1.mlp.experts.{number}.down_proj.weight" for number in range(2, 6)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_experts_of_a_stack_are_read_together_where_there_is_room(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    (tmp_path / "made").mkdir()
    for _ in convert(open_source(source), plain(bits=bits), tmp_path / "made"):
        pass
    rows = FloatRows(open_source(tmp_path / "made"))
    xs = [NUMBERS.standard_normal((tokens, rows.shapes()[NAMES[0]][1])).astype(np.float32) for tokens in (1, 2, 3, 70)]
    reads: Counter[str] = Counter()
    numpy_rows = RawTensor.numpy_rows

    def counted(self: RawTensor, start: int, stop: int) -> object:
        reads[self.name] += 1
        return numpy_rows(self, start, stop)

    monkeypatch.setattr(RawTensor, "numpy_rows", counted)

    def made(block_bytes: int) -> list[np.ndarray]:
        reads.clear()
        return Products(rows, block_bytes=block_bytes).times_each(NAMES, [Tokens(x) for x in xs])

    together = made(2**22)
    reads_together = set(reads.values())
    by_half = made(rows.size_bytes(NAMES[0]) // 2)
    reads_by_half = set(reads.values())
    wanted = [x @ rows.values(name, 0, rows.shapes()[name][0]).T for name, x in zip(NAMES, xs, strict=True)]

    assert reads_together == ({1} if bits < 16 else {len(NAMES)})
    assert reads_by_half == {2 * len(NAMES)}
    for found in (together, by_half):
        for one, exact in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, exact, atol=1e-4)
