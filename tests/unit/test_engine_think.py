"""ThinkSplitter: thought and answer told apart, wherever the stream breaks."""

import itertools
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.engine.events import Channel, TextDelta
from r1mac.engine.think import ThinkSplitter

CHUNK_SIZES = [1, 2, 3, 7, 1000]
# The pieces that decide something, torn tags among them, between pieces that do not.
PIECES = st.sampled_from(
    ["<think>", "</think>", "<thi", "nk>", "</", "think>", "<", ">", "\n", "\r\n", " ", "  x", "é🙂", "a < b", "\t"]
)
OUTPUTS = st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join)


def _split(pieces: Iterable[str], *, in_thought: bool, can_open: bool = True) -> list[TextDelta]:
    splitter = ThinkSplitter(in_thought=in_thought, can_open=can_open)
    deltas = [delta for piece in pieces for delta in splitter.feed(piece)]
    return [*deltas, *splitter.finish()]


def _chunks(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _text_of(deltas: Iterable[TextDelta], channel: Channel) -> str:
    return "".join(delta.text for delta in deltas if delta.channel == channel)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize(
    ("output", "thought", "answer"),
    [
        ("2+2\n</think>\n\nFour.", "2+2\n", "Four."),
        ("\n\n2+2</think>Four.", "2+2", "Four."),
        ("so 2+2 </th", "so 2+2 </th", ""),  # cut off inside the tag
        ("so 2+2 <", "so 2+2 <", ""),
        ("never ends\n\n", "never ends\n\n", ""),
        ("", "", ""),
        ("\n", "", ""),
        ("</think>\n\nFour.", "", "Four."),  # the empty thought of the January models
        ("\n\n</think>\n\nFour.", "", "Four."),
        ("a</think>", "a", ""),
        ("a</think>\n\n", "a", ""),
        ("a</think>b</think>c", "a", "b</think>c"),  # a second closing tag is text
        ("a</think></think>c", "a", "</think>c"),
        ("a</think><think>b</think>c", "a", "<think>b</think>c"),  # so is a second opening one
        ("a<think>b</think>c", "a<think>b", "c"),
        ("<think>\nb</think>c", "<think>\nb", "c"),  # the template has opened it: this one is the model's text
        ("a<</think>>b", "a<", ">b"),
        ("a</thin</think>b", "a</thin", "b"),
        ("a</THINK>b</think>c", "a</THINK>b", "c"),
        ("a</think>\r\n\r\nb", "a", "b"),
        ("a</think>\n    indented\n    code", "a", "    indented\n    code"),
        ("a</think>\n\n\tcode", "a", "\tcode"),
        ("  a</think>  b", "  a", "  b"),
        ("é🙂</think>\n\n中文", "é🙂", "中文"),
    ],
)
def test_opened_thought_does_not_depend_on_chunks(output: str, thought: str, answer: str, chunk_size: int) -> None:
    """After a prompt that opened the thought, all up to the first closing tag is thought, in chunks of any size."""
    deltas = _split(_chunks(output, chunk_size), in_thought=True)

    assert _text_of(deltas, "think") == thought
    assert _text_of(deltas, "answer") == answer


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize(
    ("output", "thought", "answer"),
    [
        ("<think>\n2+2\n</think>\n\nFour.", "2+2\n", "Four."),
        ("\n <think>\n2+2</think>Four.", "2+2", "Four."),  # R1-0528 may begin with white space
        ("<think></think>Four.", "", "Four."),
        ("<think>\n\n</think>\n\nFour.", "", "Four."),
        ("<think>still thinking", "still thinking", ""),
        ("<think><think>a</think>b", "<think>a", "b"),
        ("Four.", "", "Four."),
        ("\n\nFour.", "", "Four."),
        ("\n    code", "", "    code"),
        ("    code", "", "    code"),
        ("Four. <think>no</think>", "", "Four. <think>no</think>"),  # something was said before
        ("Four.</think>", "", "Four.</think>"),
        ("</think>Four.", "", "</think>Four."),  # it closes what nobody opened
        ("<thin", "", "<thin"),
        ("\n<thin", "", "<thin"),
        ("<thinking>a", "", "<thinking>a"),
        ("<b>a</b>", "", "<b>a</b>"),
        ("<", "", "<"),
        ("   ", "", "   "),
        ("\n\n", "", ""),
        ("", "", ""),
    ],
)
def test_self_opened_thought_does_not_depend_on_chunks(output: str, thought: str, answer: str, chunk_size: int) -> None:
    """A model may open the thought itself, but only before it says anything else."""
    deltas = _split(_chunks(output, chunk_size), in_thought=False)

    assert _text_of(deltas, "think") == thought
    assert _text_of(deltas, "answer") == answer


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("output", ["<think>a</think>b", "a</think>b", " <think>", "<thi", "    code\n"])
def test_tags_are_text_where_no_thought_can_be(output: str, chunk_size: int) -> None:
    """With neither an open thought nor one that can be opened, every tag is part of the answer."""
    deltas = _split(_chunks(output, chunk_size), in_thought=False, can_open=False)

    assert _text_of(deltas, "answer") == output
    assert _text_of(deltas, "think") == ""


@given(output=OUTPUTS, cuts=st.lists(st.integers(0, 60)), in_thought=st.booleans(), can_open=st.booleans())
def test_random_cuts_change_nothing(output: str, cuts: list[int], in_thought: bool, can_open: bool) -> None:
    """Any text with tags, cut anywhere, is split as it is in one piece."""
    edges = [0, *sorted(cut for cut in cuts if cut <= len(output)), len(output)]
    pieces = [output[start:stop] for start, stop in itertools.pairwise(edges)]

    in_pieces = _split(pieces, in_thought=in_thought, can_open=can_open)

    whole = _split([output], in_thought=in_thought, can_open=can_open)
    for channel in ("think", "answer"):
        assert _text_of(in_pieces, channel) == _text_of(whole, channel)


@given(output=OUTPUTS, chunk_size=st.integers(1, 9), in_thought=st.booleans(), can_open=st.booleans())
def test_nothing_is_lost_but_tags_and_breaks(output: str, chunk_size: int, in_thought: bool, can_open: bool) -> None:
    """Thought, then answer, are the whole text but for the tags and the white space before and line breaks after."""
    deltas = _split(_chunks(output, chunk_size), in_thought=in_thought, can_open=can_open)
    thought, answer = _text_of(deltas, "think"), _text_of(deltas, "answer")

    # What may stand before the thought, between the two, and nowhere else.
    before = r"[\r\n]*" if in_thought or not can_open else r"(\s*<think>)?[\r\n]*"
    between = r"(</think>)?[\r\n]*"
    assert re.fullmatch(before + re.escape(thought) + between + re.escape(answer), output)
    assert all(delta.text for delta in deltas)
    assert [delta.channel for delta in deltas] == sorted((delta.channel for delta in deltas), reverse=True)


@given(output=OUTPUTS, in_thought=st.booleans())
def test_no_more_than_a_tag_is_held_back(output: str, in_thought: bool) -> None:
    """Text of an answer or thought that has begun is shown at once, but for what may be the start of a tag."""
    splitter = ThinkSplitter(in_thought=in_thought)
    shown = sum(len(delta.text) for delta in splitter.feed("word" + output))

    held = sum(len(delta.text) for delta in splitter.finish())
    assert held < len("</think>")
    assert shown >= len("word")


@pytest.mark.parametrize(
    ("in_thought", "fed", "channel"),
    [
        (True, "", "think"),
        (True, "a</thi", "think"),
        (True, "a</think>", "answer"),
        (False, "", "answer"),
        (False, "<thin", "answer"),
        (False, "\n<think>", "think"),
        (False, "<think>a</think>", "answer"),
    ],
)
def test_channel_is_where_the_next_text_goes(in_thought: bool, fed: str, channel: str) -> None:
    """``channel`` follows the tags that are complete."""
    splitter = ThinkSplitter(in_thought=in_thought)

    for _ in splitter.feed(fed):
        pass

    assert splitter.channel == channel
