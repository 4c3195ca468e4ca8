"""The order of work of a conversion whose source comes file by file."""

from hypothesis import given
from hypothesis import strategies as st

from r1mac.convert.schedule import most_bytes_at_once, steps

FILES = [f"model-{index:05}-of-00008.safetensors" for index in range(1, 9)]
NEEDS = st.dictionaries(st.integers(0, 10**6), st.frozensets(st.sampled_from(FILES), max_size=3), max_size=60)


@given(NEEDS)
def test_every_piece_is_made_once_with_its_files_there(files_of):
    """Each piece is in one step, every file that it needs is named there, and none of them was given up before."""
    gone: set[str] = set()
    made = []
    for step in steps(files_of):
        assert not gone & set(step.files)
        made += step.pieces
        for piece in step.pieces:
            assert files_of[piece] <= set(step.files)
        gone |= set(step.unneeded_files)

    assert sorted(made) == sorted(files_of)
    assert gone == frozenset().union(*files_of.values())


@given(NEEDS)
def test_no_file_is_kept_that_nothing_needs(files_of):
    """After each step the files that are kept are exactly those that a later step reads too."""
    order = steps(files_of)
    come: set[str] = set()
    for index, step in enumerate(order):
        come |= set(step.files)
        come -= set(step.unneeded_files)
        assert come == {file for file in come if any(file in later.files for later in order[index + 1 :])}


@given(NEEDS, st.integers(0, 60))
def test_any_beginning_can_be_gone_on_with(files_of, done_count):
    """The steps of what is unfinished are those of all, less what was done: nothing is needed that was given up."""
    order = steps(files_of)
    done = [piece for step in order[:done_count] for piece in step.pieces]
    rest = steps({piece: files for piece, files in files_of.items() if piece not in done})

    assert [(step.pieces, step.unneeded_files) for step in rest] == [
        (step.pieces, step.unneeded_files) for step in order[done_count:]
    ]


def pieces_of_671b(*, shard_bytes=4_302_300_000):
    """Return the files of each piece of DeepSeek-R1, its tensors laid one after another as its repository has them."""
    hidden, rank, wide = 7168, 2048, 18432
    scale_bytes = 4 * (hidden // 128) * (rank // 128)
    sizes: list[tuple[str, int]] = [("embed", 129280 * hidden * 2)]
    for layer in range(61):
        sizes.append((f"{layer}.attention", 187_000_000))
        if layer < 3:
            sizes += [(f"{layer}.{name}", hidden * wide) for name in ("gate", "up", "down")]
            continue
        for expert in range(256):
            for name in ("gate", "up", "down"):
                expert_name = f"{layer}.{expert}.{name}"
                sizes += [(expert_name, hidden * rank), (f"{expert_name}.scale", scale_bytes)]
        sizes.append((f"{layer}.shared", 3 * hidden * rank))
    sizes.append(("head", 129280 * hidden * 2))
    file_of, here_bytes, number, size_of = {}, 0, 1, {}
    for name, size in sizes:
        if here_bytes + size > shard_bytes:
            number, here_bytes = number + 1, 0
        file_of[name] = f"model-{number:05}"
        here_bytes += size
        size_of[file_of[name]] = here_bytes
    pieces = {name: frozenset({file_of[name], file_of.get(f"{name}.scale", file_of[name])}) for name, _ in sizes}
    return {name: files for name, files in pieces.items() if not name.endswith(".scale")}, size_of


def test_671b_keeps_one_file_at_a_time():
    """Of DeepSeek-R1's 150-odd files one is there at a time, though the stack of a layer's experts spreads over four."""
    files_of, size_of = pieces_of_671b()
    order = steps(files_of)
    layers = [[files for name, files in files_of.items() if name.startswith(f"{layer}.")] for layer in range(61)]

    assert len(size_of) > 150
    assert max(len(frozenset().union(*files)) for files in layers) == 4
    assert most_bytes_at_once(order, size_of) == max(size_of.values())


def test_scale_in_the_next_file_keeps_one_file_longer():
    """A file whose last matrix has its scale in the next file stays until that has come, and no longer."""
    files_of = {"a": frozenset({"1"}), "b": frozenset({"1", "2"}), "c": frozenset({"2"}), "d": frozenset({"3"})}
    order = steps(files_of)

    assert [step.pieces for step in order] == [("a",), ("b", "c"), ("d",)]
    assert [step.unneeded_files for step in order] == [(), ("1", "2"), ("3",)]
    assert most_bytes_at_once(order, {"1": 10, "2": 20, "3": 25}) == 30
