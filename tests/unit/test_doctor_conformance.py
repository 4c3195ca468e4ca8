"""What the doctor says of tokenizers and chat templates: every known family is well, every known trap is seen."""

import json
from pathlib import Path

import pytest

from r1mac.doctor.conformance import check_tokenizers, conformance
from r1mac.hub.manifest import describe, write_manifest
from r1mac.machine import fake
from tests.checkpoints import CONFIGS, R1_TEMPLATE, write_checkpoint, write_tokenizer
from tests.doctors import ASSISTANT, BOS, EOS, LLAMA_IDS, USER, edit, examination, only, use_tokens

TEMPLATES = Path(__file__).parents[1] / "templates"
LLAMA = {"model_type": "llama", "vocab_size": 128_256, "eos_token_id": 128_001}
TINY = {"model_type": "llama", "vocab_size": 320, "eos_token_id": 1}


def model(folder: Path, *, template: str = R1_TEMPLATE, config: dict | None = None, think_tokens: bool = True) -> Path:
    """Write what of a model tells how text becomes tokens."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, template=template, think_tokens=think_tokens)
    (folder / "config.json").write_text(json.dumps(TINY if config is None else config))
    return folder


def template_of(family: str) -> str:
    """Return a template of tests/templates."""
    return (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")


# Families -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("r1-2025-01", "R1's template of January 2025; the model opens its thought itself"),
        ("r1-2025-02", "R1's template since February 2025; the template opens the thought"),
        ("r1-0528", "R1-0528's template; the model opens its thought itself"),
        ("v3.1", "V3.1's template; the template opens the thought"),
    ],
)
def test_families_of_r1_are_known_by_what_they_make(tmp_path, family, said):
    """Each of DeepSeek's templates is told from the others by rendering it, and is well with R1's tokens."""
    found, faults = conformance(model(tmp_path, template=template_of(family)))

    assert found == f"{said}; answers end with {EOS}"
    assert faults == []


@pytest.mark.parametrize("family", ["chatml", "qwen3"])
def test_chatml_is_known_and_well_with_its_own_tokens(tmp_path, family):
    """Other models bring their own template and tokens."""
    folder = model(tmp_path, template=template_of(family), config={**TINY, "eos_token_id": None})
    use_tokens(folder, {"<|im_start|>": 300, "<|im_end|>": 301}, eos="<|im_end|>")
    edit(folder / "tokenizer_config.json", bos_token=None)

    assert conformance(folder) == ("ChatML; no thought tags; answers end with <|im_end|>", [])


# Traps --------------------------------------------------------------------------------------------


def test_chatml_on_an_r1_is_a_fault(tmp_path):
    """A distill that somebody gave ChatML answers nothing or nonsense."""
    _, faults = conformance(model(tmp_path, template=template_of("chatml")))

    assert ("fail", "the template is ChatML, and the tokenizer is R1's") in [fault[:2] for fault in faults]


def test_look_alike_bars_are_a_fault(tmp_path):
    """A template with ASCII bars writes text where tokens should be."""
    folder = model(tmp_path, template=R1_TEMPLATE.replace("｜User｜", "|User|"))
    _, faults = conformance(folder)

    assert [fault[1] for fault in faults] == ["the template writes '<|User|>', which is no token of this tokenizer"]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ bos_token }}" + R1_TEMPLATE, f"a prompt begins with 2 {BOS}"),
        (R1_TEMPLATE.removeprefix("{{ bos_token }}"), f"a prompt does not begin with {BOS}"),
    ],
)
def test_a_wrong_beginning_is_a_fault(tmp_path, template, fault):
    """Two first tokens, or none, make every answer worse without an error."""
    _, faults = conformance(model(tmp_path, template=template))

    assert [(status, found) for status, found, _ in faults] == [("fail", fault)]


def test_a_first_token_that_is_none_is_a_fault(tmp_path):
    """A bos_token of another tokenizer is text."""
    folder = model(tmp_path)
    edit(folder / "tokenizer_config.json", bos_token="<s>")
    _, faults = conformance(folder)

    assert "'<s>', is none of this tokenizer" in faults[0][1]


def test_an_answer_that_never_ends_is_a_fault(tmp_path):
    """Without an end the model writes until its context is full."""
    folder = model(tmp_path, config={**TINY, "eos_token_id": None})
    edit(folder / "tokenizer_config.json", eos_token=None)
    _, faults = conformance(folder)

    assert [fault[1] for fault in faults] == ["no token ends an answer"]


def test_an_end_that_generation_does_not_know_is_a_fault(tmp_path):
    """The template's own end of an answer must stop generation."""
    folder = model(tmp_path, config={**TINY, "eos_token_id": 5})
    edit(folder / "tokenizer_config.json", eos_token=USER)
    _, faults = conformance(folder)

    assert [fault[1] for fault in faults] == [
        f"the template ends an answer with {EOS}, and generation does not stop there"
    ]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1]}))
    assert conformance(folder)[1] == []


def test_tags_of_several_tokens_are_a_warning(tmp_path):
    """R1's own tokenizers have the tags as tokens."""
    _, faults = conformance(model(tmp_path, think_tokens=False))

    assert [fault[:2] for fault in faults] == [("warn", "<think> and </think> are no tokens of their own")]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "there is no chat template"),
        ("{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}:", "unknown family"),
    ],
)
def test_a_template_that_nobody_knows_is_a_warning(tmp_path, template, words):
    """No template, and one of its own kind, may work; nobody has tried."""
    folder = model(tmp_path)
    edit(folder / "tokenizer_config.json", chat_template=template)
    _, faults = conformance(folder)

    assert [fault[0] for fault in faults] == ["warn"]
    assert words in faults[0][1]


def test_a_tokenizer_that_loses_text_is_a_fault(tmp_path):
    """A tokenizer rebuilt with another pipeline drops spaces; the model would read other words."""
    folder = model(tmp_path)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Replace", "pattern": {"String": "  "}, "content": " "}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    _, faults = conformance(folder)

    assert faults[0][0] == "fail"
    assert "does not give back what it is given" in faults[0][1]


def test_a_tokenizer_of_a_larger_model_is_a_fault(tmp_path):
    """Tokens that the model has no row for cannot be read by it."""
    _, faults = conformance(model(tmp_path, config={**TINY, "vocab_size": 100}))

    assert [fault[1] for fault in faults] == ["the tokenizer has 262 tokens and the model 100"]


def test_ids_of_a_distill_are_those_of_its_repository(tmp_path):
    """A distill of Llama has its six markers where DeepSeek put them."""
    folder = model(tmp_path, config=LLAMA)
    use_tokens(folder, LLAMA_IDS, eos=EOS)

    assert conformance(folder)[1] == []


def test_ids_of_another_model_are_a_fault(tmp_path):
    """The tokenizer of a sibling has the same names at other places."""
    folder = model(tmp_path, config=LLAMA)
    use_tokens(folder, {**LLAMA_IDS, ASSISTANT: 128_020, "<think>": 128_012}, eos=EOS)
    _, faults = conformance(folder)

    assert [fault[1] for fault in faults] == [
        f"{ASSISTANT} is 128020 and not 128012, and 1 more of R1's tokens are elsewhere"
    ]


def test_yarn_as_the_config_asks(tmp_path):
    """A factor that mlx-lm alone would get wrong is said to be set right."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.8782488562869419}
    found, faults = conformance(model(tmp_path, config={**TINY, "rope_scaling": scaling}))

    assert faults == []
    assert "YaRN's attention factor set to 1.0" in found


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "yarn", "attn_factor": 1.0}, {"rope_type": "yarn", "attn_factor": "x", "factor": 4}]
)
def test_a_config_that_makes_no_sense_is_a_fault(tmp_path, scaling):
    """It is named rather than stumbled over."""
    _, faults = conformance(model(tmp_path, config={**TINY, "rope_scaling": scaling}))

    assert faults[0][0] == "fail"
    assert "config.json" in faults[0][1]


# Stored models ------------------------------------------------------------------------------------


def test_every_stored_model_is_looked_at(tmp_path):
    """A well one is a line of what it is; a faulty one has a line for each fault, with the way to mend it."""
    for name in ("well", "ill"):
        folder = write_checkpoint(tmp_path / name, CONFIGS["llama"])
        if name == "ill":
            write_tokenizer(folder, template="{{ bos_token }}" + R1_TEMPLATE, think_tokens=False)
        write_manifest(folder, describe(folder, source=name, revision=None, bits=16))
    results = list(check_tokenizers(examination(fake.M4_16, models_dir=tmp_path)))

    assert [(result.title, result.status) for result in results] == [
        ("tokenizer ill", "fail"),
        ("tokenizer ill", "warn"),
        ("tokenizer well", "ok"),
    ]
    assert "chat_template.jinja" in str(results[0].fix)
    assert only(results[2:]).found.startswith("R1's template since February 2025")
