"""What a name means to somebody who wants to convert it."""

import os

import pytest

from r1mac.errors import BadCheckpoint, UnknownModel
from r1mac.prepare.weights import find_weights


def test_catalog_name_means_the_published_weights():
    """A model of the catalog means the weights it was published with, though a ready MLX model exists."""
    found = find_weights("70b")

    assert (found.path, found.repo) == (None, "deepseek-ai/DeepSeek-R1-Distill-Llama-70B")
    assert found.store_name("4bit") == f"{found.spec.key}-4bit"
    assert find_weights("deepseek-ai/DeepSeek-R1-Distill-Llama-70B") == found


def test_repository_has_a_place_of_its_own_in_the_store():
    """Any other repository is what it says, and what it becomes has its name; a recipe of a model names it itself."""
    found = find_weights("my-org/my-r1-70b-finetune")

    assert (found.path, found.repo, found.spec) == (None, "my-org/my-r1-70b-finetune", None)
    assert found.store_name("mxfp4") == "my-org--my-r1-70b-finetune-mxfp4"
    assert find_weights("671b").store_name("r1-671b-2bit-small") == "r1-671b-2bit-small"


def test_path_goes_before_a_name(tmp_path, monkeypatch):
    """What is there on this disk is meant, but a folder that only has a model's alias for a name is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "70b").mkdir()
    (tmp_path / "some.gguf").touch()

    assert str(find_weights("org/model").path) == "org/model"
    assert str(find_weights("some.gguf").path) == "some.gguf"
    assert find_weights("70b").path is None
    assert find_weights("./70b").path is not None


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_pipe_is_refused_and_not_waited_for(prefix, tmp_path, monkeypatch):
    """Nobody may ever write into it."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("weights.gguf")

    with pytest.raises(BadCheckpoint, match="neither a file nor a folder"):
        find_weights(f"{prefix}weights.gguf")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("./absent", BadCheckpoint, "nothing at"),
        ("absent.gguf", BadCheckpoint, "nothing at"),
        ("670b", UnknownModel, "671b"),
        ("hello there", UnknownModel, "org/name"),
    ],
)
def test_what_is_nowhere_is_said(name, error, words):
    """A path that is not there and a name that means nothing are told apart, with the nearest names."""
    with pytest.raises(error) as caught:
        find_weights(name)

    assert words in f"{caught.value.problem} {caught.value.hint}"
