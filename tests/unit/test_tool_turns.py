"""Functions in a prompt: each family is told of them, of calls and of results in the form that it has learned."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac.engine.prompt import Prompt, PromptTemplate
from r1mac.engine.request import Message, ToolCall
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.tool_turns import in_call_order
from r1mac.errors import RefusedConversation
from tests.checkpoints import R1_TEMPLATE, write_tokenizer

TEMPLATES = Path(__file__).parents[1] / "templates"
BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
BEGIN, END, CALL, CALL_END = (f"<｜tool▁{word}｜>" for word in ("calls▁begin", "calls▁end", "call▁begin", "call▁end"))
OUTS, OUTS_END, OUT, OUT_END = (
    f"<｜tool▁{word}｜>" for word in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end")
)
SEP = "<｜tool▁sep｜>"
TOOL = json.dumps({
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
})  # fmt: skip


def call(call_id: str, place: str) -> ToolCall:
    return ToolCall(id=call_id, name="weather", arguments=json.dumps({"place": place}))


# Two rounds of calls; the first has two, whose results come in the other order.
ASKED = (
    Message("user", "Warm?"),
    Message("assistant", "Let me see.", (call("a", "Oslo"), call("b", "Rome"))),
    Message("tool", "22 </think>", tool_call_id="b"),
    Message("tool", "3", tool_call_id="a"),
    Message("assistant", "", (call("c", "Bonn"),)),
    Message("tool", "9", tool_call_id="c"),
)
ENDED = (*ASKED, Message("assistant", "Rome is."), Message("user", "Thanks."))


def r1(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


R1_ASKED = (
    f"{USER}Warm?{ASSISTANT}Let me see.{BEGIN}"
    + r1("weather", '{"place": "Oslo"}')
    + "\n"
    + r1("weather", '{"place": "Rome"}')
    + f"{END}{EOS}{OUTS}{OUT}3{OUT_END}\n{OUT}22 </think>{OUT_END}{OUTS_END}"
    + f"{BEGIN}{r1('weather', json.dumps({'place': 'Bonn'}))}{END}{EOS}{OUTS}{OUT}9{OUT_END}{OUTS_END}"
)
V31_ASKED = (
    f'{USER}Warm?{ASSISTANT}</think>Let me see.{BEGIN}{CALL}weather{SEP}{{"place": "Oslo"}}{CALL_END}'
    f'{CALL}weather{SEP}{{"place": "Rome"}}{CALL_END}{END}{EOS}{OUT}3{OUT_END}{OUT}22 </think>{OUT_END}'
    f'{BEGIN}{CALL}weather{SEP}{{"place": "Bonn"}}{CALL_END}{END}{EOS}{OUT}9{OUT_END}'
)


def chatml(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def hermes(place: str) -> str:
    return f'<tool_call>\n{{"name": "weather", "arguments": {{"place": "{place}"}}}}\n</tool_call>'


def response(*texts: str) -> str:
    return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)


HERMES_CALLS = f"Let me see.\n{hermes('Oslo')}\n{hermes('Rome')}"
# family: what ASKED becomes behind the system text
RENDERED = {
    "r1-2025-01": R1_ASKED,
    "r1-2025-02": R1_ASKED,
    "r1-2025-02-tools": R1_ASKED,
    "r1-0528": R1_ASKED,
    "v3.1-tools": V31_ASKED,
    "qwen3-tools": chatml("user", "Warm?")
    + chatml("assistant", HERMES_CALLS)
    + chatml("user", response("3"))
    + chatml("user", response("22 </think>"))
    + chatml("assistant", f"\n{hermes('Bonn')}")
    + chatml("user", response("9"))
    + "<|im_start|>assistant\n",
    "chatml": chatml("user", "Warm?")
    + chatml("assistant", HERMES_CALLS)
    + chatml("user", response("3", "22 </think>"))
    + chatml("assistant", hermes("Bonn"))
    + chatml("user", response("9"))
    + "<|im_start|>assistant\n",
}  # fmt: skip


def template(folder: Path, family: str) -> PromptTemplate:
    source = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    write_tokenizer(folder, template=source, think_tokens=family != "chatml")
    return PromptTemplate(folder, Tokenizer(folder))


def render(folder: Path, family: str, messages: tuple[Message, ...], **options: object) -> Prompt:
    return template(folder, family).render(messages, **{"think": True, "tools": [TOOL], **options})


@pytest.mark.parametrize("family", RENDERED)
def test_calls_and_results_of_every_family(family: str, tmp_path: Path) -> None:
    """Calls and results stand in the family's own marks, each list in a pair of them, results in the calls' order."""
    prompt = render(tmp_path, family, ASKED)

    assert prompt.text.endswith(RENDERED[family])
    assert prompt.text.count("Warm?") == 1
    assert not prompt.in_thought


@pytest.mark.parametrize("family", RENDERED)
def test_the_functions_stand_in_the_system_text(family: str, tmp_path: Path) -> None:
    """Name, description and parameters come before the conversation, behind what the system says."""
    prompt = render(tmp_path, family, (Message("system", "Be brief."), *ASKED))

    head = prompt.text.removesuffix(RENDERED[family])
    assert head != prompt.text
    assert head.index("Be brief.") < head.index('"weather"') < head.index("Tells it.") < head.index('"place"')


def test_the_functions_are_told_where_only_the_last_system_text_is_kept(tmp_path: Path) -> None:
    """R1 keeps the last of several system messages, and the functions with it."""
    systems = (Message("system", "One."), Message("system", "Two."))

    assert '"weather"' in render(tmp_path, "r1-2025-02", (*systems, *ASKED)).text


@pytest.mark.parametrize(
    ("family", "example"),
    [
        ("r1-2025-02", BEGIN + r1("NAME", '{"parameter": "value"}') + END),
        ("r1-2025-02-tools", BEGIN + r1("NAME", '{"parameter": "value"}') + END),
        ("v3.1-tools", f'{BEGIN}{CALL}NAME{SEP}{{"parameter": "value"}}{CALL_END}{END}'),
        ("chatml", '<tool_call>\n{"name": "NAME", "arguments": {"parameter": "value"}}\n</tool_call>'),
    ],
)
def test_how_to_call_is_told_in_the_familys_own_marks(family: str, example: str, tmp_path: Path) -> None:
    """A model whose template lists no functions is shown a call as its template writes them."""
    assert example in render(tmp_path, family, (Message("user", "Hi"),)).text


def test_a_template_that_lists_functions_is_told_nothing_more(tmp_path: Path) -> None:
    """What the template says of functions is all that is said."""
    text = render(tmp_path, "qwen3-tools", (Message("user", "Hi"),)).text

    assert text == chatml("system", f"\n<tools>\n{TOOL}\n</tools>") + chatml("user", "Hi") + "<|im_start|>assistant\n"


@pytest.mark.parametrize("family", [*RENDERED])
@pytest.mark.parametrize(
    ("must_call", "words"), [(True, "at least one of the functions"), ("weather", "the function weather")]
)
def test_a_model_that_must_call_is_told_so(family: str, must_call: bool | str, words: str, tmp_path: Path) -> None:
    """Wherever the functions are listed, the last words of the system say that one has to be called."""
    text = render(tmp_path, family, (Message("user", "Hi"),), must_call=must_call).text

    assert text.count(words) == 1
    assert words not in render(tmp_path, family, (Message("user", "Hi"),)).text


@pytest.mark.parametrize("family", ["r1-2025-02", "r1-2025-02-tools"])
def test_the_answer_after_results_belongs_to_them(family: str, tmp_path: Path) -> None:
    """R1's answer follows the results without a mark, and the next turn opens a thought as ever."""
    prompt = render(tmp_path, family, ENDED)

    assert prompt.text.endswith(f"{R1_ASKED}Rome is.{EOS}{USER}Thanks.{ASSISTANT}<think>\n")
    assert prompt.in_thought


@pytest.mark.parametrize("family", RENDERED)
def test_without_a_thought_after_results(family: str, tmp_path: Path) -> None:
    """A model that is asked not to think gets an empty thought behind the results, where it knows thoughts."""
    prompt = render(tmp_path, family, ASKED, think=False)

    assert not prompt.in_thought
    assert prompt.text == render(tmp_path, family, ASKED).text + (
        "" if family == "chatml" else "<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("family", RENDERED)
def test_a_later_turn_extends_an_earlier_prompt(family: str, tmp_path: Path) -> None:
    """What was read of a conversation with functions is the beginning of what follows, so that it is not read again."""
    shared = render(tmp_path, family, ASKED).text

    later = render(
        tmp_path, family, (*ASKED, Message("assistant", "", (call("d", "Nice"),)), Message("tool", "1"))
    ).text

    assert later.startswith(shared)


def test_a_model_without_functions_is_told_nothing(tmp_path: Path) -> None:
    """No word of functions where none are offered, and calls of the past are shown all the same."""
    text = render(tmp_path, "r1-2025-02", ASKED, tools=()).text

    assert text == BOS + R1_ASKED


@pytest.mark.parametrize(
    ("calls", "results"), [("seen.calls", "true"), ("false", "seen.results")], ids=["calls", "results"]
)
def test_a_template_that_opens_a_list_only_once_is_not_followed(calls: str, results: str, tmp_path: Path) -> None:
    """Every round of calls, and of results, has both of its marks, though the template writes the first mark once."""
    source = f"""
{{%- set seen = namespace(calls=false, results=false) -%}}{{{{ bos_token }}}}
{{%- for m in messages -%}}
    {{%- if m.role == 'user' -%}}{{{{ '{USER}' + m.content }}}}
    {{%- elif m.role == 'tool' -%}}
        {{%- if not {results} -%}}{{{{ '{OUTS}' }}}}{{%- endif -%}}{{%- set seen.results = true -%}}
        {{{{ '{OUT}' + m.content + '{OUT_END}' }}}}
    {{%- elif m.role == 'assistant' -%}}{{{{ '{ASSISTANT}' + m.content }}}}
        {{%- for call in m.tool_calls or [] -%}}
            {{%- if loop.first and not {calls} -%}}{{{{ '{BEGIN}' }}}}{{%- endif -%}}{{%- set seen.calls = true -%}}
            {{{{ '{CALL}' + call.function.name + '{SEP}' + call.function.arguments + '{CALL_END}' }}}}
        {{%- endfor -%}}
        {{{{ '{END}' if m.tool_calls else '' }}}}{{{{ '{EOS}' }}}}
    {{%- endif -%}}
{{%- endfor -%}}"""
    write_tokenizer(tmp_path, template=source)

    prompt = PromptTemplate(tmp_path, Tokenizer(tmp_path)).render(ASKED, think=True)

    assert prompt.text == BOS + R1_ASKED


def test_a_template_that_shows_no_role_of_results(tmp_path: Path) -> None:
    """A template of three lines, which would print results as the system's words, gets R1's marks."""
    write_tokenizer(tmp_path, template=R1_TEMPLATE)

    prompt = PromptTemplate(tmp_path, Tokenizer(tmp_path)).render(ASKED, think=True)

    assert prompt.text == BOS + R1_ASKED


def test_arguments_that_are_no_json_are_shown_as_they_are(tmp_path: Path) -> None:
    """A client may send back calls that no model wrote; they break nothing."""
    odd = Message("assistant", "", (ToolCall(id="a", name="weather", arguments="Oslo {"),))

    for family in RENDERED:
        assert "Oslo {" in render(tmp_path, family, (ASKED[0], odd, Message("tool", "3"))).text


def test_a_turn_that_the_template_leaves_out_is_an_error(tmp_path: Path) -> None:
    """A template that drops what the model called is no template for functions, and says so."""
    write_tokenizer(tmp_path, template=f"{{{{ '{ASSISTANT}' }}}}{{{{ messages[0].content }}}}")

    with pytest.raises(RefusedConversation, match="with functions"):
        PromptTemplate(tmp_path, Tokenizer(tmp_path)).render(ASKED, think=True)


def test_tool_marks_are_read_and_written_as_tokens(tmp_path: Path) -> None:
    """Where the marks are special tokens, a prompt has one token for each, and the model's own arrive as text."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["added_tokens"] += [
        {"id": 300 + i, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, mark in enumerate((BEGIN, CALL, SEP, CALL_END, END))
    ]  # fmt: skip
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    tokenizer = Tokenizer(tmp_path)
    text = BEGIN + r1("weather", "{}") + END

    stream = tokenizer.stream()
    token_ids = tokenizer.encode(text)

    assert "".join(map(stream.push, token_ids)) + stream.finish() == text
    assert [tokenizer.decode([token_id]) for token_id in token_ids].count(CALL) == 1
    assert token_ids[0] == tokenizer.token_id(BEGIN)
    assert token_ids[-1] == tokenizer.token_id(END)


@pytest.mark.parametrize(
    ("ids", "ordered"),
    [(["b", "a"], "ab"), ([None, None], "12"), (["b", "x"], "12"), (["a"], "a")],
)
def test_results_come_in_the_order_of_their_calls(ids: list[str | None], ordered: str) -> None:
    """Results are sorted by their calls where they all name one, and left as they are where not."""
    asked = Message("assistant", "", (call("a", "x"), call("b", "y")))
    texts = [call_id if ordered.isalpha() else str(index + 1) for index, call_id in enumerate(ids)]
    results = [Message("tool", text or "", tool_call_id=call_id) for text, call_id in zip(texts, ids, strict=True)]

    told = in_call_order([asked, *results, Message("user", "and?")])

    assert [message.text for message in told if message.role == "tool"] == list(ordered)
    assert (told[0], told[-1]) == (asked, Message("user", "and?"))


_ROLES = st.sampled_from(["user", "assistant", "calls", "tool"])


@settings(max_examples=40)
@given(st.lists(_ROLES, min_size=1, max_size=12), st.sampled_from(sorted(RENDERED)))
def test_whatever_was_said_is_in_the_prompt_once_and_in_order(roles: list[str], family: str) -> None:
    """However turns, calls and results follow each other, the model reads each of them once."""
    with tempfile.TemporaryDirectory() as folder:
        prompt = template(Path(folder), family)
        messages, words = [], []
        for index, role in enumerate(roles):
            word = f"word{index}."
            if role == "calls":
                arguments = f'{{"place": "place{index}."}}'
                calls = (ToolCall(id=f"id{index}", name="weather", arguments=arguments),)
                messages.append(Message("assistant", word, calls))
                words += [word, f"place{index}."]
            else:
                messages.append(Message(role, word))
                words.append(word)

        text = prompt.render(messages, think=True, tools=[TOOL]).text

    assert [text.count(word) for word in words] == [1] * len(words)
    assert sorted(words, key=text.index) == words
    assert text.count(BEGIN) == text.count(END)
    assert text.count(OUTS) == text.count(OUTS_END)
