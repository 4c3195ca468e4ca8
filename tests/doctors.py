"""Examinations of made-up computers, for the tests of r1mac/doctor."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from r1mac.doctor.examination import CheckResult, Examination
from r1mac.engine.device import Device
from r1mac.hub.manifest import describe, write_manifest
from r1mac.machine.base import HardwareProfile
from r1mac.machine.fake import FakeMachine
from r1mac.machine.readings import Boot
from r1mac.settings import Settings
from r1mac.units import GB
from tests.checkpoints import CONFIGS, write_checkpoint, write_tokenizer

NOW_S = 1_763_800_000.0
BOOT = Boot(session="11111111-0000-4000-8000-000000000001", started_at_s=1_762_000_000)


BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
LLAMA_IDS = {BOS: 128_000, EOS: 128_001, USER: 128_011, ASSISTANT: 128_012, "<think>": 128_013, "</think>": 128_014}


def examination(
    profile: HardwareProfile,
    *,
    device: Device | str | None = None,
    models_dir: Path = Path("/nowhere/models"),
    settings_error: Any = None,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    **state: Any,
) -> Examination:
    """Return the examination of a computer with this profile; *state* is what FakeMachine takes."""
    known = device or Device(
        name=profile.chip, on_gpu=profile.system == "macos", working_set_bytes=profile.wired_limit_bytes
    )
    return Examination(
        FakeMachine(profile, **{"boot": BOOT, **state}),
        Settings(models_dir=models_dir, models=models or {}),
        settings_error=settings_error,
        device=lambda: known,
        now_s=NOW_S,
    )


def only(results: Iterable[CheckResult]) -> CheckResult:
    """Return the one result."""
    (result,) = results
    return result


def status_and_words(check: Callable[[Examination], Iterable[CheckResult]], of: Examination, *words: str) -> str:
    """Return the status of a check's one result, all of whose *words* it must say somewhere."""
    result = only(check(of))
    text = f"{result.found} {result.why} {result.fix}"
    for word in words:
        assert word in text, text
    assert (result.status == "ok") == (result.why is None)
    return result.status


# Models -------------------------------------------------------------------------------------------

LARGE_CONFIG = {
    **CONFIGS["llama"],
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "eos_token_id": 128_001,
}


def store_model(models_dir: Path, name: str = "tiny") -> Path:
    """Put a small whole model into the store."""
    folder = write_checkpoint(models_dir / name, CONFIGS["llama"])
    write_manifest(folder, describe(folder, source="org/tiny", revision=None, bits=16))
    return folder


def store_large(models_dir: Path, *, weight_gb: int, bits: int = 4) -> Path:
    """Put a 70B into the store whose weights are a hole in a file: nothing of them is on the disk."""
    folder = models_dir / f"r1-distill-70b-{bits}bit"
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    use_tokens(folder, LLAMA_IDS, eos=EOS)
    (folder / "config.json").write_text(json.dumps(LARGE_CONFIG))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(weight_gb * GB)
    write_manifest(folder, describe(folder, source="org/70b", revision=None, bits=bits))
    return folder


def edit(path: Path, **changes: object) -> None:
    """Change a JSON file; a value of None takes the key away."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def use_tokens(folder: Path, tokens: Mapping[str, int], *, eos: str) -> None:
    """Give a model a tokenizer of bytes and of these special tokens, at these ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    free = (number for number in range(10, 10_000) if number not in tokens.values())
    alphabet = dict(zip(sorted(pre_tokenizers.ByteLevel.alphabet()), free, strict=False))
    tokenizer = Tokenizer(models.BPE({**alphabet, **tokens}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    edit(folder / "tokenizer_config.json", eos_token=eos)
