"""What the doctor says of disk, settings and stored models."""

from pathlib import Path

import pytest

from r1mac.doctor.examination import Examination
from r1mac.doctor.storage import check_disk, check_models, check_settings, check_store
from r1mac.errors import BadSettings
from r1mac.machine import fake
from r1mac.machine.base import HardwareProfile
from r1mac.machine.readings import Disk
from r1mac.units import GB
from tests.doctors import examination, only, status_and_words, store_large, store_model


def looked_at(models_dir: Path, profile: HardwareProfile = fake.M4_16) -> Examination:
    """Return the examination of a Mac with this store."""
    return examination(profile, models_dir=models_dir)


# Disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free_gb", "disk", "status", "words"),
    [
        (437, Disk(kind="internal", file_system="APFS", connection="Apple Fabric"), "ok", ("internal, APFS",)),
        (437, Disk(), "ok", ("437.0 GB free",)),
        (
            437,
            Disk(kind="external", file_system="APFS", connection="USB"),
            "warn",
            ("Timeout", "R1MAC_MODELS_DIR", "USB"),
        ),
        (437, Disk(kind="network", connection="//me@nas/models"), "warn", ("from a network", "R1MAC_MODELS_DIR")),
        (19, Disk(kind="external"), "warn", ("r1mac rm",)),
        (1, Disk(kind="internal"), "fail", ("r1mac rm",)),
    ],
)
def test_room_and_kind_of_the_disk(free_gb, disk, status, words):
    """A disk without room is worse than a slow one, and a slow one is a warning."""
    mac = examination(fake.M4_MAX_128, free_disk_bytes=free_gb * GB, disk=disk)

    assert status_and_words(check_disk, mac, *words) == status


# Settings -----------------------------------------------------------------------------------------


def test_settings_that_are_wrong_fail():
    """What is wrong with config.toml is said in the words of its own error."""
    error = BadSettings("config.toml has an unknown setting 'bit'", hint="known settings: bits")

    assert status_and_words(check_settings, examination(fake.M4_16, settings_error=error), "'bit'", "known") == "fail"


def test_settings_that_are_right(tmp_path):
    """Without a file the defaults are named, with one its path."""
    from r1mac import paths

    before = only(check_settings(examination(fake.M4_16))).found
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text("bits = 4\n")
    after = only(check_settings(examination(fake.M4_16))).found

    assert before == "the defaults"
    assert after == f"{paths.config_file()} is valid"


def test_a_table_for_no_model_is_told():
    """A slip in the name of a model's table would have no effect without a word; an alias has one."""
    for name, status in (("bogus", "warn"), ("70b", "ok"), ("r1-distill-70b", "ok")):
        of = examination(fake.M4_16, models={name: {"kv_bits": 8}})
        assert only(check_settings(of)).status == status


# The store ----------------------------------------------------------------------------------------


def test_an_empty_store_is_well(tmp_path):
    """Nothing stored is no fault."""
    assert status_and_words(check_store, looked_at(tmp_path / "models"), "none in") == "ok"
    assert list(check_models(looked_at(tmp_path / "models"))) == []


def test_a_whole_model_is_well(tmp_path):
    """A model with all its files that fits is a line with its memory."""
    store_model(tmp_path)

    assert list(check_store(looked_at(tmp_path))) == []
    assert status_and_words(check_models, looked_at(tmp_path), "with 4096 tokens of context, of") == "ok"


def test_a_model_that_lost_a_file_fails(tmp_path):
    """A missing file is named, with the commands that bring it back; its memory is not judged then."""
    folder = store_model(tmp_path, "org--tiny")
    (folder / "model-00002-of-00002.safetensors").unlink()
    damaged, nothing = check_store(looked_at(tmp_path))

    assert damaged.status == "fail"
    assert "model-00002-of-00002.safetensors" in damaged.found
    assert damaged.fix == "fetch it again: r1mac rm org--tiny; r1mac pull org/tiny"
    assert nothing.found.startswith("none")
    assert list(check_models(looked_at(tmp_path))) == []


def test_a_model_whose_manifest_is_broken_fails(tmp_path):
    """A folder that was a model and cannot be read as one any more is not passed by in silence."""
    store_model(tmp_path)
    (store_model(tmp_path, "other") / "r1mac.json").write_text("{")

    assert status_and_words(check_store, looked_at(tmp_path), "r1mac.json cannot be read", "r1mac rm other") == "fail"


def test_an_unfinished_download_is_named_with_its_size(tmp_path):
    """What an interrupted download left takes room: how much, how to go on, how to delete it."""
    store_model(tmp_path)
    partial = tmp_path / ".mlx-community--R1-4bit.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"x" * 5_000_000)
    words = ("5.0 MB so far", "r1mac pull mlx-community/R1-4bit", "r1mac rm mlx-community--R1-4bit")

    assert status_and_words(check_store, looked_at(tmp_path), *words) == "warn"


def test_a_half_deleted_model_is_named(tmp_path):
    """What a kill in the middle of a deletion left is no model, and takes room."""
    store_model(tmp_path)
    (tmp_path / ".tiny.trash-0a1b2c3d").mkdir()

    assert status_and_words(check_store, looked_at(tmp_path), "half deleted", "rm -r") == "warn"


# Does it fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "status", "words"),
    [
        (fake.M4_MAX_128, "ok", ("of 96.8 GiB that it may use",)),
        (fake.M5_PRO_64, "ok", ("46.6 GiB with ", "of 46.7 GiB")),
        (fake.M4_PRO_48, "warn", ("r1mac ",)),
        (fake.M4_16, "warn", ("does not fit", "r1mac ")),
    ],
)
def test_a_stored_model_that_does_not_fit(tmp_path, profile, status, words):
    """A model that is stored and does not fit is a warning with a command that would help."""
    store_large(tmp_path, weight_gb=40)

    assert status_and_words(check_models, looked_at(tmp_path, profile), *words) == status


def test_a_model_that_only_the_limit_keeps_out(tmp_path):
    """Where tune would make room, tune is what is advised."""
    store_large(tmp_path, weight_gb=75, bits=8)

    assert (
        status_and_words(check_models, looked_at(tmp_path, fake.M2_MAX_96), "wired limit", "r1mac tune", "--apply")
        == "warn"
    )
