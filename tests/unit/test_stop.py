"""Stop texts: where an answer is cut, whatever the pieces it comes in."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine.stop import StopStrings


def _feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """Return what is released of a text in *pieces*, and whether a stop was met."""
    strings = StopStrings(stops)
    released = "".join([*map(strings.feed, pieces), strings.finish()])
    return released, strings.stopped


def _pieces(text: str, breaks: list[int]) -> list[str]:
    places = [0, *sorted(place % (len(text) + 1) for place in breaks), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(places)]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("stops", "text", "released", "stopped"),
    [
        (["END"], "one END two", "one ", True),
        (["END"], "one EN", "one EN", False),
        (["END"], "", "", False),
        ([], "one END", "one END", False),
        (["\n\n"], "a\nb\n\nc", "a\nb", True),
        (["aab"], "aaab", "a", True),  # the first of three letters was no beginning
        (["abcd", "bc"], "xabcd", "x", True),  # «abcd» began first, though «bc» was whole first
        (["abcd", "bc"], "xabce", "xa", True),  # «abcd» did not come true
        (["abcd", "bc"], "xabc", "xa", True),  # nothing follows: «bc» it is
        (["abc", "ab"], "xabd", "x", True),
        (["ab", "abc"], "xabc", "x", True),
        (["🙂é"], "ok 🙂e🙂é!", "ok 🙂e", True),
        (["END"], "END", "", True),
        (["END", "one"], "one END", "", True),
    ],
)
def test_a_text_is_cut_where_the_first_stop_begins(
    stops: list[str], text: str, released: str, stopped: bool, size: int
) -> None:
    """The text before the stop that begins first is released, all of it where none is met."""
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]

    assert _feed(stops, pieces) == (released, stopped)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    text=st.text("abc", max_size=30),
    breaks=st.lists(st.integers(0, 30), max_size=30),
)
@settings(max_examples=500)
def test_the_pieces_change_nothing(stops: list[str], text: str, breaks: list[int]) -> None:
    """However a text is broken, what is released is the text before the first place where a stop stands."""
    places = [text.find(stop) for stop in stops if stop in text]
    expected = text[: min(places, default=len(text))]

    assert _feed(stops, _pieces(text, breaks)) == (expected, bool(places))


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    pieces=st.lists(st.text("abc", max_size=3), max_size=20),
)
def test_no_more_is_held_back_than_need_be(stops: list[str], pieces: list[str]) -> None:
    """What is held back is shorter than the longest stop, unless a stop was met in it already."""
    strings, fed, released = StopStrings(stops), "", ""

    for piece in pieces:
        fed += piece
        released += strings.feed(piece)

        assert fed.startswith(released)
        if not strings.stopped and not any(stop in fed for stop in stops):
            assert len(fed) - len(released) < max(map(len, stops))


def test_after_a_stop_nothing_comes() -> None:
    """What arrives after a stop is dropped."""
    strings = StopStrings(["x"])

    assert strings.feed("ax") == "a"
    assert strings.stopped
    assert strings.feed("b") == strings.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_an_empty_stop_is_refused(stops: list[str]) -> None:
    """An empty text stands everywhere, so it cannot be meant."""
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(stops)
