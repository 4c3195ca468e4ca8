"""What tune writes into config.toml, and that it takes out nothing else."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.errors import BadSettings
from r1mac.prepare.journal import ConfigChange, Journal, format_journal, parse_journal
from r1mac.prepare.preferences import extended, undone, values_of, with_values, write_config

VALUES = {"bits": 4, "context_tokens": 32768, "kv_bits": 16, "prefill_step_tokens": 2048}
MODELS = ("r1-distill-70b", "r1-distill-1.5b", "org--name")
TEXTS = [
    "",
    "bits = 4\n",
    "bits = 4",
    "# mine\nbits = 4  # four\n\n# the end\n",
    "bits = 4\r\ntop_p = 0.9\r\n",
    '[models."r1-distill-70b"]\nbits = 3  # mine\ncontext_tokens = 8192\n# below\n',
    "temperature = 0.5\n\n[models.r1-distill-32b]\nkv_bits = 8\n[models.other]\nbits = 8\n",
    "[models]\n[models.r1-distill-70b]\ntop_p = 0.9\n",
]


def written(text: str | None, model: str, values: dict[str, int], change: ConfigChange | None = None):
    new = with_values(text, model, values)
    return new, extended(change or ConfigChange(), text, new, model, values)


@pytest.mark.parametrize("text", [None, *TEXTS])
@pytest.mark.parametrize("model", MODELS)
def test_only_the_models_table_changes(text, model):
    """What is written is there afterwards, and every other setting and comment as before."""
    new = with_values(text, model, VALUES)
    before, after = tomllib.loads(text or ""), tomllib.loads(new)

    assert values_of(new, model) == values_of(text, model) | VALUES
    after["models"].pop(model)
    before.get("models", {}).pop(model, None)
    assert after.pop("models") == before.pop("models", {})
    assert after == before
    assert [line for line in (text or "").splitlines() if line.startswith("#") and line not in new] == []


@pytest.mark.parametrize("text", [None, *TEXTS])
def test_undo_gives_the_file_back_to_the_byte(text):
    """Written once or several times, for one model or more: the file is what it was, or gone if it was not there."""
    new, change = written(text, "r1-distill-70b", VALUES)
    newer, change = written(new, "r1-distill-70b", VALUES | {"context_tokens": 8192}, change)
    newest, change = written(newer, "r1-distill-8b", VALUES, change)

    assert undone(change, newest) == text
    assert undone(change, newer) == text  # a crash came before the last write
    assert undone(change, text) == text


def test_what_the_user_changed_since_stays():
    """A value that is no longer what tune wrote is the user's; the rest goes back."""
    new, change = written("bits = 4\n\n[models.r1-distill-70b]\nkv_bits = 8\n", "r1-distill-70b", VALUES)
    theirs = new.replace("32768", "16384") + "\n[models.another]\nbits = 3\n"
    back = undone(change, theirs)

    assert tomllib.loads(back) == {
        "bits": 4,
        "models": {"r1-distill-70b": {"kv_bits": 8, "context_tokens": 16384}, "another": {"bits": 3}},
    }


def test_after_the_users_change_a_second_tuning_is_undone_too():
    """The user's line between two tunings stays, and what both wrote goes."""
    new, change = written(None, "r1-distill-70b", VALUES)
    theirs = "top_p = 0.9\n" + new
    newer, change = written(theirs, "r1-distill-70b", VALUES | {"bits": 3}, change)

    assert tomllib.loads(undone(change, newer)) == {"top_p": 0.9}
    assert tomllib.loads(undone(change, theirs)) == {"top_p": 0.9}


def test_a_file_that_is_gone_stays_gone():
    """Who deleted config.toml gets none back."""
    _, change = written("bits = 4\n", "r1-distill-70b", VALUES)

    assert undone(change, None) is None


@pytest.mark.parametrize(
    "text", ["models = {a = {bits = 4}}\n", "models.a.bits = 3\ntop_p = 0.5\n", "models = 3\n", "bits = \n"]
)
def test_a_form_that_cannot_be_extended_is_refused(text):
    """Where the tables are written inline nothing is guessed: the user is told what to write."""
    with pytest.raises(BadSettings, match=r"config\.toml has a form") as caught:
        with_values(text, "r1-distill-70b", VALUES)

    assert "[models." in caught.value.hint


names = st.sampled_from(MODELS)
numbers = st.dictionaries(st.sampled_from(list(VALUES)), st.sampled_from([4, 8, 16, 2048, 32768]), min_size=1)


@given(text=st.sampled_from([None, *TEXTS]), steps=st.lists(st.tuples(names, numbers), min_size=1, max_size=4))
def test_any_tunings_are_undone_to_the_byte(text, steps):
    """However often tune wrote, and through a record that was saved and read each time."""
    now, change = text, ConfigChange()
    for model, values in steps:
        now, change = written(now, model, values, change)
        change = parse_journal(format_journal(_journal(change))).config

    assert undone(change, now) == text


def _journal(change: ConfigChange):
    from r1mac.machine.readings import Boot

    return Journal(boot=Boot(), limit_mib=0, config=change)


def test_a_linked_config_stays_a_link(tmp_path):
    """A config.toml that is a link into somebody's dotfiles is written through the link, with its permissions."""
    real = tmp_path / "dotfiles" / "r1mac.toml"
    real.parent.mkdir()
    real.write_text("bits = 4\n")
    real.chmod(0o600)
    link = tmp_path / "config.toml"
    link.symlink_to(real)

    write_config(link, "bits = 3\n")

    assert link.is_symlink()
    assert real.read_text() == "bits = 3\n"
    assert real.stat().st_mode & 0o777 == 0o600
    assert list(real.parent.iterdir()) == [real]
