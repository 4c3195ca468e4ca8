"""What config.toml says for one model alone, between what it says for all and what the user says now."""

from pathlib import Path

import pytest

from r1mac import settings
from r1mac.errors import BadSettings

CONFIG = """\
bits = 8
context_tokens = 4096
kv_bits = 16

[models."r1-distill-70b"]
bits = 3
context_tokens = 20480
prefill_step_tokens = 512

[models.other]
temperature = 0.2
"""


def load(tmp_path: Path, config: str = CONFIG, **environ_and_flags: object) -> settings.Settings:
    (tmp_path / "config.toml").write_text(config)
    environ = {name: str(value) for name, value in environ_and_flags.items() if name.isupper()}
    flags = {name: value for name, value in environ_and_flags.items() if not name.isupper()}
    return settings.load({"R1MAC_HOME": str(tmp_path), **environ}, **flags)


def test_a_models_own_values_overrule_those_for_all(tmp_path):
    """What the model's table says counts for it, what it does not say comes from above it."""
    found = load(tmp_path).for_model("r1-distill-70b")

    assert (found.bits, found.context_tokens, found.prefill_step_tokens, found.kv_bits) == (3, 20480, 512, 16)


def test_other_models_do_not_see_them(tmp_path):
    found = load(tmp_path)

    assert (found.bits, found.context_tokens, found.prefill_step_tokens) == (8, 4096, None)
    assert found.for_model("r1-distill-8b") == found
    assert found.for_model("other").temperature == 0.2


def test_a_variable_overrules_them(tmp_path):
    """Flags and variables are said for this run, so they hold for every model; the rest of the table still counts."""
    found = load(tmp_path, R1MAC_BITS=4, R1MAC_CONTEXT_TOKENS=1024).for_model("r1-distill-70b")

    assert (found.bits, found.context_tokens, found.prefill_step_tokens) == (4, 1024, 512)


def test_a_flag_overrules_them(tmp_path):
    found = load(tmp_path, context_tokens=2048, bits=None).for_model("r1-distill-70b")

    assert (found.bits, found.context_tokens) == (3, 2048)
    assert found.said == {"context_tokens"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("models = 3", "models"),
        ("models = [1]", "models"),
        ("[models]\nx = 3", "models"),
        ("[models.x]\nbit = 3", "'bit'"),
        ("[models.x]\nbits = 7", "bits"),
        ("[models.x]\nbits = 'four'", "bits"),
        ("[models.x]\ncontext_tokens = -1", "context_tokens"),
        ("[models.x]\nmodels_dir = '/m'", "models_dir"),
        ("[models.x.y]\nbits = 4", "'y'"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(config, said, tmp_path):
    """Even if this run is about another model: a slip is better found at once."""
    with pytest.raises(BadSettings) as caught:
        load(tmp_path, config)

    assert said in caught.value.problem
    assert str(tmp_path / "config.toml") in caught.value.problem
    assert caught.value.hint
