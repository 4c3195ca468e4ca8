"""tokenizer.json and its companions from a GGUF file's metadata."""

import json
from collections.abc import Mapping
from typing import Any

from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import GGUFFile

# ggml's token types.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _words(digits: str) -> str:
    """Return the splitting pattern that Llama 3 brought and Qwen2 took over; they differ in *digits*."""
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# How text is split before the merges, by ggml's name (``tokenizer.ggml.pre``). A wrong one gives wrong tokens
# without any error, so a name that is not here is refused.
_GPT2, _DIGITS_THEN_GPT2 = "gpt2", "digits then gpt2"
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[str, str | tuple[str, ...]] = {
    "gpt-2": _GPT2,
    "default": _GPT2,
    "smollm": _DIGITS_THEN_GPT2,
    "starcoder": _DIGITS_THEN_GPT2,
    "llama-bpe": _words(r"\p{N}{1,3}"),
    "llama3": _words(r"\p{N}{1,3}"),
    "llama-v3": _words(r"\p{N}{1,3}"),
    "qwen2": _words(r"\p{N}"),
    "deepseek-r1-qwen": _words(r"\p{N}"),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",  # Chinese, Hiragana, Katakana
        _DEEPSEEK_WORDS,
    ),
}
# These give a word that is a token as a whole precedence over its merges.
_IGNORES_MERGES = {"llama-bpe", "llama3", "llama-v3"}


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """Return the tokenizer's files by name: tokenizer.json and tokenizer_config.json.

    Raises:
        BadCheckpoint: the tokenizer is of a kind that r1mac cannot rebuild exactly.
    """
    metadata = file.metadata
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise BadCheckpoint(
            f"{file.path.name} has a tokenizer of the kind {kind!r} / {pre!r}, which r1mac cannot rebuild exactly",
            hint="convert the original weights, whose tokenizer.json is copied as it is",
        )
    tokens = list(metadata.get("tokenizer.ggml.tokens", ()))
    config = _tokenizer_config(metadata, tokens)
    try:
        tokenizer_json = _tokenizer_json(metadata, tokens, pre)
    except Exception as error:  # the tokenizers library raises a bare Exception for every kind of damage
        raise BadCheckpoint(
            f"the tokenizer in {file.path.name} is damaged: {error}", hint="fetch the file again"
        ) from error
    return {
        "tokenizer.json": tokenizer_json,
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
    }


def end_token_ids(file: GGUFFile) -> list[int]:
    """Return the tokens that end an answer."""
    keys = ("eos_token_id", "eot_token_id")
    ids = [file.metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    return list(dict.fromkeys(int(token_id) for token_id in ids if token_id is not None))


def _tokenizer_json(metadata: Mapping[str, Any], tokens: list[str], pre: str) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    types = list(metadata.get("tokenizer.ggml.token_type", [1] * len(tokens)))
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _IGNORES_MERGES))
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for token, kind in zip(tokens, types, strict=True):
        if kind in {_UNKNOWN, _CONTROL, _USER_DEFINED}:
            tokenizer.add_tokens([AddedToken(token, special=kind != _USER_DEFINED, normalized=False)])
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") and bos_id is not None:
        bos = tokens[int(bos_id)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, int(bos_id))]
        )
    return tokenizer.to_str(pretty=False)


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    pattern = _PRE_TOKENIZERS[pre]
    if pattern == _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pattern == _DIGITS_THEN_GPT2:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(one), behavior="isolated") for one in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _tokenizer_config(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": False,
    }
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None and 0 <= int(token_id) < len(tokens):
            config[name] = tokens[int(token_id)]
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config
