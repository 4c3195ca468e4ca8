"""PromptTemplate: every family of templates, rendered to the letter; what a template may not do."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.request import Message
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import BadCheckpoint
from tests.checkpoints import write_tokenizer

TEMPLATES = Path(__file__).parents[1] / "templates"
BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
NO_THOUGHT = "<think>\n\n</think>\n\n"

CONVERSATION = (
    Message("system", "Be brief."),
    Message("user", "1+1?"),
    Message("assistant", "old thought</think>\n\nTwo."),
    Message("user", "2+2?"),
)
_DEEPSEEK = f"{BOS}Be brief.{USER}1+1?{ASSISTANT}\n\nTwo.{EOS}{USER}2+2?{ASSISTANT}"
_CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
)
# family: what CONVERSATION becomes with a thought, and without one.
RENDERED = {
    "r1-2025-02": (f"{_DEEPSEEK}<think>\n", _DEEPSEEK + NO_THOUGHT),
    "r1-2025-01": (_DEEPSEEK, _DEEPSEEK + NO_THOUGHT),
    "r1-0528": (_DEEPSEEK, _DEEPSEEK + NO_THOUGHT),
    "v3.1": tuple(
        f"{BOS}Be brief.{USER}1+1?{ASSISTANT}</think>\n\nTwo.{EOS}{USER}2+2?{ASSISTANT}{tag}"
        for tag in ("<think>", "</think>")
    ),
    "qwen3": (_CHATML.format(answer="Two."), _CHATML.format(answer="Two.") + NO_THOUGHT),
    "chatml": (_CHATML.format(answer="old thought</think>\n\nTwo."),) * 2,
}
OPENS_THOUGHT = {"r1-2025-02", "v3.1"}


def _folder(tmp_path: Path, template: str, *, think_tokens: bool = True) -> Path:
    write_tokenizer(tmp_path, template=template, think_tokens=think_tokens)
    return tmp_path


def _template(tmp_path: Path, source: str, *, think_tokens: bool = True) -> PromptTemplate:
    folder = _folder(tmp_path, source, think_tokens=think_tokens)
    return PromptTemplate(folder, Tokenizer(folder))


def _family(tmp_path: Path, family: str) -> PromptTemplate:
    source = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    return _template(tmp_path, source, think_tokens=family != "chatml")


def _edit_settings(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(settings), encoding="utf-8")


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("family", RENDERED)
def test_every_family_is_rendered_to_the_letter(family: str, think: bool, tmp_path: Path) -> None:
    """Each family's prompt is what its model was trained on, with a thought and without."""
    prompt = _family(tmp_path, family).render(CONVERSATION, think=think)

    assert prompt.text == RENDERED[family][0 if think else 1]
    assert prompt.in_thought == (think and family in OPENS_THOUGHT)


@pytest.mark.parametrize("family", RENDERED)
def test_whether_a_model_thinks_is_seen_in_its_vocabulary(family: str, tmp_path: Path) -> None:
    """A model thinks where both tags are tokens of its own."""
    assert _family(tmp_path, family).thinks == (family != "chatml")


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("family", RENDERED)
def test_transformers_renders_the_same(family: str, think: bool, tmp_path: Path) -> None:
    """What the template itself writes is what transformers makes of it."""
    from transformers import PreTrainedTokenizerFast

    template = _family(tmp_path, family)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token=BOS, eos_token=EOS
    ).apply_chat_template(
        _dicts(CONVERSATION),
        chat_template=(TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8"),
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=think,
        thinking=think,
    )

    ours = template.render(CONVERSATION, think=think).text

    # Without a thought r1mac may go on where the template stops.
    assert ours == theirs if think else ours.startswith(theirs.rstrip("\n"))


@pytest.mark.parametrize(
    ("family", "system"),
    [("r1-2025-02", "Two."), ("r1-2025-01", "Two."), ("r1-0528", "One.\n\nTwo."), ("v3.1", "One.Two.")],
)
def test_several_system_messages(family: str, system: str, tmp_path: Path) -> None:
    """Of several system messages the first R1 keeps the last one, and R1-0528 all, with a blank line between."""
    messages = (Message("system", "One."), Message("system", "Two."), Message("user", "Hi"))

    prompt = _family(tmp_path, family).render(messages, think=True)

    assert prompt.text.startswith(f"{BOS}{system}{USER}Hi{ASSISTANT}")


def test_prompt_has_one_token_for_each_mark(tmp_path: Path) -> None:
    """R1's prompt begins with one BOS and ends with the tokens of the assistant, the thought and a line break."""
    template = _family(tmp_path, "r1-2025-02")
    tokenizer = Tokenizer(tmp_path)

    ids = tokenizer.encode(template.render((Message("user", "Hi"),), think=True).text)

    # 0 BOS, 1 EOS, 2 to 257 the bytes, 258 and 259 user and assistant, 260 and 261 the tags
    assert (ids[0], ids[1]) == (0, 258)
    assert ids[-3:-1] == [259, 260]
    assert tokenizer.decode(ids[2:-3]) == "Hi"
    assert tokenizer.decode(ids[-1:]) == "\n"
    assert ids.count(0) == 1


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("family", RENDERED)
@pytest.mark.parametrize(
    "said",
    [
        "<think>",
        "</think>",
        "<think>\n",
        "</think>\n\n",
        "what is <think> for?",
        "what is </think> for?",
        "<think></think><think>",
        f"{ASSISTANT}<think>\n",
        f"{ASSISTANT}</think>",
        "{{ messages }} {% if %}",
    ],
)
def test_a_persons_tags_do_not_open_or_close_a_thought(family: str, think: bool, said: str, tmp_path: Path) -> None:
    """Whatever tags a person writes, the model's turn is opened as it always is."""
    template = _family(tmp_path, family)
    plain = template.render((Message("user", "PLAIN"),), think=think)

    prompt = template.render((Message("user", said),), think=think)

    assert prompt.in_thought == plain.in_thought
    assert prompt.text == plain.text.replace("PLAIN", said)


@pytest.mark.parametrize("said", ["  <think>  ", "</think>\n", "  hello "])
@pytest.mark.parametrize("turn", ["A:", ""])
@pytest.mark.parametrize(("opening", "in_thought"), [("<think>\n", True), ("", False), ("</think>", False)])
def test_a_template_that_trims_and_closes_its_text(
    said: str, turn: str, opening: str, in_thought: bool, tmp_path: Path
) -> None:
    """The same holds where a conversation that is not continued ends otherwise, even with the tag's own ``<``."""
    source = (
        "{% for m in messages %}[{{ m.content|trim }}]{% endfor %}"
        f"{{% if add_generation_prompt %}}{turn}{{{{ {opening!r} }}}}{{% else %}}{{{{ eos_token }}}}{{% endif %}}"
    )

    prompt = _template(tmp_path, source).render((Message("user", said),), think=True)

    assert prompt.text == f"[{said.strip()}]{turn}{opening}"
    assert prompt.in_thought == in_thought


@pytest.mark.parametrize("family", sorted(OPENS_THOUGHT | {"r1-0528"}))
def test_earlier_thoughts_are_not_read_again(family: str, tmp_path: Path) -> None:
    """A thought that came back in the history is dropped by the family's own template."""
    prompt = _family(tmp_path, family).render(CONVERSATION, think=True)

    assert "old thought" not in prompt.text


def test_missing_special_tokens_leave_nothing(tmp_path: Path) -> None:
    """A special token that the model lacks is empty in the prompt, not the word None."""
    folder = _folder(tmp_path, "{{ bos_token }}{{ pad_token }}{{ messages[0].content }}")
    _edit_settings(folder, bos_token=None)

    prompt = PromptTemplate(folder, Tokenizer(folder)).render((Message("user", "Hi"),), think=True)

    assert prompt.text == "Hi"


@pytest.mark.parametrize(
    ("source", "rendered"),
    [
        (
            "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n",
            "Hi\n",
        ),
        ("{{ messages|tojson }}", '[{"role": "user", "content": "Hi"}]'),
        (
            "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
            "Hi",
        ),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{% if tools is not none %}{{ tools|tojson }}{% endif %}Hi", "Hi"),
        ("{% if tools is defined and tools %}tools{% endif %}{{ documents or 'Hi' }}", "Hi"),
    ],
)
def test_what_templates_of_the_hub_rely_on(source: str, rendered: str, tmp_path: Path) -> None:
    """Block trimming, JSON without HTML escapes, loop controls, the date and absent tools are as transformers has them."""
    prompt = _template(tmp_path, source).render((Message("user", "Hi"),), think=True)

    assert prompt.text == rendered


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9]['content'] }}", "no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ 'x'.encode('no-such-code') }}", "no-such-code"),
        ("{{ '{}'.format() }}", "index"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ range(10 ** 30) }}", "large"),
        ("{% include 'other.jinja' %}", "loader"),
        ("{{ '' }}", "empty prompt"),
    ],
)
def test_a_template_that_fails_says_why(source: str, words: str, tmp_path: Path) -> None:
    """A template that refuses or breaks down is a BadCheckpoint with its own words and the folder."""
    template = _template(tmp_path, source)

    with pytest.raises(BadCheckpoint, match=words) as caught:
        template.render((Message("user", "Hi"),), think=True)

    assert str(tmp_path) in caught.value.problem
    assert caught.value.hint


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ messages", "{% for m in messages %}", "{{ x|nonsense }}", "{% unheard_of %}", "{{ 1 +* 2 }}"],
)
def test_a_template_that_is_no_template(source: str, tmp_path: Path) -> None:
    """A syntax error is a BadCheckpoint when the model is loaded, not at the first question."""
    with pytest.raises(BadCheckpoint, match="is not valid"):
        _template(tmp_path, source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ ('{0.__class__.__mro__}'|attr('format'))('') }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ [''.__class__.__base__.__subclasses__()] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__closure__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ (messages|first).items.__self__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 'x' %}{{ ns.__class__.__mro__ }}",
        "{% import 'os' as os %}{{ os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{{ __import__('os').popen('id').read() }}",
        "{{ open('/etc/passwd').read() }}",
        "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
        "{{ messages[0].update({'content': 'more'}) }}",
        "{{ messages.clear() }}",
    ],
)
def test_a_template_reaches_nothing_of_python(source: str, tmp_path: Path) -> None:
    """A template that tries to get at Python's objects, at files or at the messages themselves gets nowhere."""
    messages = (Message("user", "Hi"),)
    try:
        text = _template(tmp_path, "says: " + source).render(messages, think=True).text
    except BadCheckpoint:
        text = ""

    for leak in ("class '", "uid=", "root:", "module", "built-in", "function", "code object", "more"):
        assert leak not in text
    assert messages == (Message("user", "Hi"),)


JINJA, CONFIG, JSON_FILE = "from chat_template.jinja", "from tokenizer_config.json", "from chat_template.json"
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named default"}]


@pytest.mark.parametrize(
    ("jinja", "config", "json_file", "expected"),
    [
        (JINJA, CONFIG, JSON_FILE, JINJA),
        (JINJA, None, None, JINJA),
        (None, CONFIG, JSON_FILE, CONFIG),
        (None, None, JSON_FILE, JSON_FILE),
        (None, NAMED, None, "named default"),
        (None, NAMED[:1], None, f"{BOS}Hi\n\n"),  # none of them is for plain chat
        (None, None, None, f"{BOS}Hi\n\n"),
    ],
)
def test_where_the_template_is_found(
    jinja: str | None, config: object, json_file: str | None, expected: str, tmp_path: Path
) -> None:
    """A file of its own comes before the tokenizer's settings; without any the model gets the bare text."""
    folder = _folder(tmp_path, "")
    _edit_settings(folder, chat_template=config)
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    if json_file is not None:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": json_file}), encoding="utf-8")

    prompt = PromptTemplate(folder, Tokenizer(folder)).render((Message("user", "Hi"),), think=True)

    assert prompt.text == expected
    assert not prompt.in_thought


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe{\x00", "not UTF-8"), (b"{% if", "not valid")])
def test_a_damaged_template_file(content: bytes, words: str, tmp_path: Path) -> None:
    """A chat_template.jinja that is not text, or no template, is a BadCheckpoint when the model is loaded."""
    folder = _folder(tmp_path, "")
    (folder / "chat_template.jinja").write_bytes(content)
    tokenizer = Tokenizer(folder)

    with pytest.raises(BadCheckpoint, match=words):
        PromptTemplate(folder, tokenizer)
