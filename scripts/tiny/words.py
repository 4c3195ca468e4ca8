"""The tiny model's tokenizer: bytes, R1's own special tokens, single digits, and the words of its sums."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
BEGIN, END, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
PAD = "<｜▁pad▁｜>"
THINK, THOUGHT = "<think>", "</think>"
BEGIN_ID, END_ID = 0, 1

# As R1's own since February 2025, without tools: the last system message, earlier thoughts dropped, the thought opened.
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
    "{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)

# A digit; a word or a sign with a space before it, and the one behind it where a digit follows; spaces.
_PIECES = r"\p{N}| ?\p{L}+(?: (?=\p{N}))?| ?[^\s\p{L}\p{N}]+(?: (?=\p{N})|\n*)|\s+"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of VOCABULARY tokens, whose words are the most frequent ones of *texts*."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [_special(token) for token in (BEGIN, END, PAD, USER, ASSISTANT)]
    thinking = [AddedToken(token, special=False, normalized=False) for token in (THINK, THOUGHT)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(thinking),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The trainer takes special tokens for text; between them it shall see what the model will.
    marks = re.compile("|".join(map(re.escape, (BEGIN, END, USER, ASSISTANT, THINK, THOUGHT))))
    tokenizer.train_from_iterator((part for text in texts for part in marks.split(text) if part), trainer)
    tokenizer.add_tokens(thinking)
    return tokenizer


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
