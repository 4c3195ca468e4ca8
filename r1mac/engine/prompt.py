"""Conversations to prompts by the model's own template, and whether the prompt leaves it thinking."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from r1mac.engine.request import AnswerFormat, Message
from r1mac.engine.think import THINK_END, THINK_START, tag_overlap
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.tool_turns import Dicts, ShapedTurns, ToolTurns
from r1mac.errors import BadCheckpoint, RefusedConversation
from r1mac.formats.folder import read_json

# For a model that came without a template; what it says is all the model gets.
_BARE_TEMPLATE = "{{ bos_token or '' }}{% for m in messages %}{{ m.content }}\n\n{% endfor %}"

_FETCH_TEMPLATE = "fetch the model's tokenizer_config.json or chat_template.jinja again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: what the model reads.
        in_thought: whether the model's text begins inside a thought that the template opened.
        answer_format: what the answer must look like if functions must be called.
    """

    text: str
    in_thought: bool
    answer_format: AnswerFormat | None = None


class PromptTemplate:
    """A model's chat template."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder = folder
        self.thinks = tokenizer.has_token(THINK_START) and tokenizer.has_token(THINK_END)
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        texts = {name: tokenizer.special_token(name) for name in names}
        # A token that the model lacks stays undefined: None would be printed into the prompt.
        self._special_tokens = {name: text for name, text in texts.items() if text is not None}
        source = _find_template(folder, tokenizer.settings)
        self._template = _compile(source if source is not None else _BARE_TEMPLATE, folder)
        end_text = self._special_tokens.get("eos_token", "")
        self._turns = ToolTurns(self._render_probe, end_text=end_text, is_token=tokenizer.has_token)

    def render(
        self,
        messages: Sequence[Message],
        *,
        think: bool,
        tools: Sequence[str] = (),
        must_call: bool | str = False,
    ) -> Prompt:
        """Return the prompt for the conversation *messages*.

        With *think* False the thought is closed before it begins: by the template where it knows how, else
        by the tags themselves. *tools* and *must_call* are those of a GenerateRequest.

        Raises:
            RefusedConversation: the template refuses it; its own words are given.
            BadCheckpoint: the template makes nothing of it.
        """
        turns = self._turns.shape(messages, tools, must_call)
        text = self._render_turns(turns, think=think, opens_turn=True)
        if not text:
            raise BadCheckpoint(f"the chat template in {self._folder} makes an empty prompt", hint=_FETCH_TEMPLATE)
        opening = self._opening(turns, text, think=think)
        in_thought = opening.rfind(THINK_START) > opening.rfind(THINK_END)
        if not think and in_thought:
            text, in_thought = text.rstrip("\n") + f"\n\n{THINK_END}\n\n", False
        elif not think and self.thinks and THINK_END not in opening:
            text += f"{THINK_START}\n\n{THINK_END}\n\n"
        must = self._turns.calls_format(tools, must_call) if tools and must_call else None
        return Prompt(text=text, in_thought=in_thought, answer_format=must)

    def _opening(self, turns: ShapedTurns, text: str, *, think: bool) -> str:
        """Return the part of a prompt that opens the model's turn: a user may have written tags too."""
        conversation = self._render_turns(turns, think=think, opens_turn=False)
        # Some templates end a conversation that is not continued with a token, which may begin like a tag.
        shared = os.path.commonprefix([text, conversation])  # noqa: RUF071 - text, not paths
        held = max(tag_overlap(shared, tag) for tag in (THINK_START, THINK_END))
        return text[len(shared) - held :]

    def _render_turns(self, turns: ShapedTurns, *, think: bool, opens_turn: bool) -> str:
        goes_on = turns.open_at is not None
        text = self._render(turns.messages, turns.tools, think=think, opens_turn=opens_turn and not goes_on)
        if turns.open_at is not None:
            before, word, _ = text.partition(turns.open_at)
            text = before + word
        return turns.fill(text)

    def _render_probe(self, messages: Dicts, tools: Dicts | None) -> str:
        return self._render(messages, tools, think=True, opens_turn=False)

    def _render(self, messages: Dicts, tools: Dicts | None, *, think: bool, opens_turn: bool) -> str:
        import jinja2

        try:
            return str(
                self._template.render(
                    messages=messages,
                    add_generation_prompt=opens_turn,
                    # Qwen3's name and DeepSeek-V3.1's for the same wish; other templates read neither.
                    enable_thinking=think,
                    thinking=think,
                    # As transformers does, which templates are tried with: some ask whether these are none.
                    tools=tools,
                    documents=None,
                    **self._special_tokens,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise RefusedConversation(
                f"the chat template in {self._folder} cannot render this conversation: {error}",
                hint=_FETCH_TEMPLATE,
            ) from error


def _find_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _read_text(folder / "chat_template.jinja")
    template = settings.get("chat_template")
    if template is None and (folder / "chat_template.json").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadCheckpoint(f"{path} is not UTF-8 text: {error}", hint=_FETCH_TEMPLATE) from error


def _compile(source: str, folder: Path) -> Any:
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(text_format: str) -> str:
        return datetime.now().astimezone().strftime(text_format)

    def to_json(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # A template comes from the internet: the sandbox keeps it from Python, and these are all it may call.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    try:
        return environment.from_string(source)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise BadCheckpoint(f"the chat template in {folder} is not valid: {error}", hint=_FETCH_TEMPLATE) from error
