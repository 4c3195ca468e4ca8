"""What a name's plan says to a person: refusals with their numbers, and remedies that would really help."""

import os
import shlex
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac import settings as settings_module
from r1mac.catalog.models import all_models
from r1mac.errors import DoesNotFit
from r1mac.machine.base import HardwareProfile
from r1mac.machine.fake import (
    LINUX_64,
    M1_8,
    M2_ULTRA_192,
    M3_ULTRA_512,
    M4_16,
    M4_MAX_128,
    M4_PRO_48,
    M5_PRO_64,
    M5_ULTRA_256,
    M6_32_MACOS27,
    mac,
)
from r1mac.plan.fit import DEFAULT_CONTEXT_TOKENS
from r1mac.prepare.family import judge_family
from r1mac.prepare.planning import Judgement, judge, tuned_machine
from r1mac.prepare.remedies import Remedy
from r1mac.prepare.target import resolve
from r1mac.units import GIB, MIB, format_memory

MACHINES = [
    M1_8, M4_16, M6_32_MACOS27, M4_PRO_48, M5_PRO_64, M4_MAX_128, M2_ULTRA_192, M5_ULTRA_256, M3_ULTRA_512, LINUX_64,
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def empty_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1MAC_HOME", str(home))
        yield home


def judged(
    name: str, hardware: HardwareProfile, environ: Mapping[str, str] = os.environ, **flags: int | None
) -> Judgement:
    """Judge a model of the catalog as the command line would."""
    chosen = settings_module.load(environ, **flags)
    return judge(resolve(name, chosen), chosen, hardware)


def refusal(name: str, hardware: HardwareProfile, **flags: int | None) -> DoesNotFit:
    """Return the error of a model that cannot be run."""
    with pytest.raises(DoesNotFit) as caught:
        judged(name, hardware, **flags).require()
    return caught.value


def carried_out(remedy: Remedy, hardware: HardwareProfile, environ: Mapping[str, str] = os.environ) -> Judgement:
    """Return what becomes of *remedy*'s command on *hardware*, as a person would type it."""
    program, verb, name, *rest = shlex.split(remedy.command)
    assert program == "r1mac"
    if verb == "tune":
        assert rest.pop() == "--apply"
        raised = tuned_machine(hardware)
        assert raised is not None
        hardware = raised
    names = {"--bits": "bits", "--kv-bits": "kv_bits", "--context": "context_tokens"}
    flags = {names[option]: int(value) for option, value in zip(rest[::2], rest[1::2], strict=True)}
    return judged(name, hardware, environ, **flags)


def test_an_asked_context_beyond_the_models_is_refused_first():
    """A context that the model does not know is refused with both numbers, though memory would do."""
    error = refusal("70b", M3_ULTRA_512, context_tokens=200_000)

    assert "131072" in error.problem
    assert "200000" in error.problem
    assert error.hint == "`r1mac run 70b --context 131072`: the longest context that the model knows"


def test_a_context_that_neither_model_nor_memory_allows_gets_a_hint_that_both_do():
    """The 70B on 64 GB with 200,000 tokens: what is offered fits, not only what the model knows."""
    judgement = judged("70b", M5_PRO_64, context_tokens=200_000)
    assert judgement.remedies()
    assert all(carried_out(remedy, M5_PRO_64).can_run for remedy in judgement.remedies())
    assert judgement.remedies()[0].command in (refusal("70b", M5_PRO_64, context_tokens=200_000).hint or "")


def test_the_error_of_weights_that_do_not_fit():
    """The 70B on 32 GB: the error has the need, the context and the room, and what that Mac can run."""
    error = refusal("70b", M6_32_MACOS27)

    need = format_memory(judged("70b", M6_32_MACOS27).plan.total_bytes)
    assert error.problem.startswith(
        f"DeepSeek-R1-Distill-Llama-70B at 4 bits needs {need} with 32768 tokens of context"
    )
    # 32 GiB x 0.78, rounded up to pages of 16 KiB; a tenth of it is kept free.
    assert error.problem.endswith("the machine has 22.5 GiB for it")
    assert (error.hint or "").startswith("`r1mac run 32b`: DeepSeek-R1-Distill-Qwen-32B, the largest that fits, with ")
    assert error.exit_code == 4


def test_where_no_member_fits_no_false_hope_is_made():
    error = refusal("1.5b", mac("Apple M1", memory_gib=1))
    assert error.hint == "no member of the family fits this machine"


def test_where_only_the_limit_is_in_the_way_raising_it_comes_first():
    """The 4-bit 70B on 64 GB with a long context: no quality is lost by `tune`, so it is the first remedy."""
    judgement = judged("70b", M5_PRO_64, context_tokens=32_768)
    assert not judgement.can_run
    assert judgement.fits_when_tuned
    assert judgement.remedies()[0].command == "r1mac tune 70b --context 32768 --apply"
    assert "wired limit" in judgement.binding_limit


def test_where_only_the_context_is_too_long_a_shorter_one_is_offered_exactly():
    """The context named is the longest: with one block more the plan would not fit."""
    judgement = judged("32b", M6_32_MACOS27, context_tokens=131_072)
    shorter = next(remedy for remedy in judgement.remedies() if "--context" in remedy.command)
    answer = carried_out(shorter, M6_32_MACOS27)
    assert answer.can_run
    assert not judged("32b", M6_32_MACOS27, context_tokens=answer.plan.context_tokens + 256).can_run


BITS = st.sampled_from([None, 2, 3, 4, 6, 8, 16])
KV_BITS = st.sampled_from([None, 16, 8, 4])
CONTEXTS = st.none() | st.integers(256, 200_000)


@given(
    hardware=st.sampled_from(MACHINES),
    name=st.sampled_from([model.alias for model in all_models()]),
    bits=BITS,
    kv_bits=KV_BITS,
    context=CONTEXTS,
    preferred=st.fixed_dictionaries({"BITS": BITS, "KV_BITS": KV_BITS, "CONTEXT_TOKENS": CONTEXTS}),
    table=st.none() | st.fixed_dictionaries({"bits": BITS, "kv_bits": KV_BITS, "context_tokens": CONTEXTS}),
)
def test_every_remedy_really_helps(empty_home, hardware, name, bits, kv_bits, context, preferred, table):
    """Each command that is offered, typed as it stands, fits the machine that it was offered for.

    Also for somebody whose variables and config.toml say something else than r1mac would choose.
    """
    environ = {f"R1MAC_{key}": str(value) for key, value in preferred.items() if value is not None}
    environ["R1MAC_HOME"] = str(empty_home)
    lines = [f"{key} = {value}" for key, value in (table or {}).items() if value is not None]
    (empty_home / "config.toml").write_text("\n".join([f'[models."{name}"]', *lines]) if table else "")
    judgement = judged(name, hardware, environ, bits=bits, kv_bits=kv_bits, context_tokens=context)
    remedies = judgement.remedies()
    assert len(remedies) <= 3
    assert len({remedy.command for remedy in remedies}) == len(remedies)
    assert not (remedies and judgement.can_run)
    for remedy in remedies:
        assert carried_out(remedy, hardware, environ).can_run, remedy.command


def test_what_is_offered_has_room_for_an_answer():
    """An M1 with 8 GB can hold the 8B with 3,328 tokens, in which its thoughts do not end: the 7B is offered."""
    (remedy,) = judged("70b", M1_8).remedies()
    assert remedy.command == "r1mac run 7b"
    assert carried_out(remedy, M1_8).plan.context_tokens >= 13_000


def test_a_command_says_what_the_settings_would_say_otherwise():
    """With 6 bits preferred the 4-bit 671B has to be asked for."""
    environ = {**os.environ, "R1MAC_BITS": "6"}
    judgement = judged("671b", M3_ULTRA_512, environ)
    assert not judgement.can_run
    commands = [remedy.command for remedy in judgement.remedies()]
    assert "r1mac run 671b --bits 4" in commands


def test_a_table_kept_for_one_width_does_not_bind_another(tmp_path):
    """A context that `tune` kept for 3 bits is not asked of the 4-bit weights."""
    (tmp_path / "config.toml").write_text('[models."70b"]\nbits = 3\ncontext_tokens = 57000\n')
    environ = {"R1MAC_HOME": str(tmp_path)}
    assert judged("70b", M5_PRO_64, environ).wish.target.bits == 3
    assert judged("70b", M5_PRO_64, environ).plan.context_tokens == 57_000
    assert judged("70b", M5_PRO_64, environ, bits=4).can_run


@pytest.mark.parametrize(
    ("name", "hardware", "context", "bits"),
    [
        ("70b", M4_MAX_128, None, 8),
        ("70b", M4_PRO_48, 2048, 3),
        ("32b", M4_PRO_48, 32768, 6),
        ("70b", M4_16, None, None),
    ],
)
def test_the_widest_weights_for_a_context(name, hardware, context, bits):
    """The width is solved for: it fits, and the next wider does not."""
    judgement = judged(name, hardware, context_tokens=context)
    assert judgement.most_bits == bits
    if bits is not None:
        assert judged(name, hardware, bits=bits, context_tokens=context).can_run
        wider = min(width for width in (4, 6, 8, 16) if width > bits)
        assert not judged(name, hardware, bits=wider, context_tokens=context).can_run


def test_a_narrower_cache_holds_a_longer_context():
    wide, narrow = judged("70b", M5_PRO_64), judged("70b", M5_PRO_64, kv_bits=8)
    assert narrow.plan.kv_bytes_per_token < 0.6 * wide.plan.kv_bytes_per_token
    assert narrow.plan.max_context_tokens > 1.5 * wide.plan.max_context_tokens


def test_the_family_has_every_shape_once_and_its_verdicts_are_those_of_plan():
    judgements = list(judge_family(M4_MAX_128, settings_module.load()))
    names = {judgement.wish.name for judgement in judgements}
    assert {"1.5b", "7b", "8b", "14b", "32b", "70b", "671b"} <= names
    assert not {"demo", "tiny"} & set(names)
    for judgement in judgements:
        wish = judgement.wish
        same = judged(wish.name, M4_MAX_128, bits=wish.target.bits)
        assert (judgement.plan, judgement.can_run) == (same.plan, same.can_run)
    assert any(not judgement.can_run for judgement in judgements if judgement.wish.name == "671b")


def test_a_family_with_a_context_shortens_it_for_models_that_know_less():
    for judgement in judge_family(M3_ULTRA_512, settings_module.load(context_tokens=131_072, bits=4)):
        assert judgement.plan.context_tokens == min(131_072, judgement.wish.arch.max_context_tokens)


@pytest.mark.parametrize("hardware", MACHINES, ids=lambda hardware: f"{hardware.chip} {hardware.memory_bytes // GIB}")
def test_the_tuned_machine_has_more_and_leaves_macos_its_reserve(hardware):
    raised = tuned_machine(hardware)
    if raised is not None:
        assert raised.wired_limit_bytes > hardware.wired_limit_bytes
        assert raised.wired_limit_bytes <= hardware.memory_bytes - 4 * GIB
        assert raised.wired_limit_bytes % MIB == 0
    else:
        assert hardware.system == "other" or hardware.memory_bytes <= 36 * GIB


def test_a_model_plans_32768_tokens_by_default():
    assert judged("70b", M2_ULTRA_192).plan.context_tokens == DEFAULT_CONTEXT_TOKENS
