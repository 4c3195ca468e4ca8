"""``r1mac push``: real processes, real HTTP, huggingface_hub's own upload to a stand-in."""

import json

import pytest

from r1mac.hub.manifest import describe, write_manifest
from tests.hub_stand_in import Fault


@pytest.fixture(name="model")
def _model(tiny):
    """Return a folder that is a model for r1mac, with something beside it that is none of its files."""
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    write_manifest(tiny, describe(tiny, source="org/tiny", revision=None, bits=16))
    (tiny / "notes.txt").write_text("not for others")
    return tiny


@pytest.fixture(name="environment")
def _environment(environment, tmp_path):
    # The Hub's other way, xet, has servers of its own that nothing here stands in for.
    return {
        **environment,
        "R1MAC_HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_write",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    }


def served(hub, repo="me/tiny"):
    return {path.name: path.read_bytes() for path in hub.files(repo)}


def test_pushed_model_is_on_the_hub(hub, r1mac, model):
    """A push makes a private repository with the model's own files, byte for byte, in one commit, and says where."""
    done = r1mac("push", "me/tiny", str(model), "--yes")

    names = list(json.loads((model / "r1mac.json").read_text())["files"])
    assert done.returncode == 0, done.stderr
    assert served(hub) == {name: (model / name).read_bytes() for name in names}
    assert hub.uploads.visibility == {"me/tiny": "private"}
    assert len(hub.uploads.commits["me/tiny"]) == 1
    assert f"{hub.url}/me/tiny/commit/{hub.commit('me/tiny')}" in done.stderr
    assert "notes.txt" not in names


def test_pushed_model_can_be_pulled(hub, r1mac, model, tmp_path):
    """What was pushed comes back as a model that r1mac runs."""
    r1mac("push", "me/tiny", str(model), "--yes")
    pulled = r1mac("pull", "me/tiny")

    stored = tmp_path / "home" / "models" / "me--tiny"
    assert pulled.returncode == 0, pulled.stderr
    weights = {path.name: path.read_bytes() for path in model.glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in stored.glob("*.safetensors")} == weights


def test_public_only_when_asked(hub, r1mac, model):
    """With --public a new repository is public; an old one stays what it was, and that is said."""
    r1mac("push", "me/open", str(model), "--yes", "--public")
    r1mac("push", "me/tiny", str(model), "--yes")
    again = r1mac("push", "me/tiny", str(model), "--yes", "--public")

    assert hub.uploads.visibility == {"me/open": "public", "me/tiny": "private"}
    assert again.returncode == 0
    assert "to the private repository me/tiny" in again.stderr


def test_asks_first(hub, r1mac, model):
    """Without a terminal to ask at nothing is uploaded, and what would be is said."""
    refused = r1mac("push", "me/tiny", str(model))

    assert refused.returncode == 2
    assert "new private repository me/tiny" in refused.stderr
    assert "files, " in refused.stderr
    assert "--yes" in refused.stderr
    assert hub.uploads.visibility == {}


def test_folder_that_one_is_in(hub, r1mac, model):
    """Without MODEL the folder that one is in is pushed."""
    done = r1mac("push", "me/tiny", "--yes", cwd=model)

    assert done.returncode == 0, done.stderr
    assert "model.safetensors.index.json" in served(hub)


def test_second_push_sends_what_changed(hub, r1mac, model):
    """A push after a broken one sends no object again that has arrived."""
    hub.fault("me/tiny:commit", Fault(status=400))
    broken = r1mac("push", "me/tiny", str(model), "--yes")
    before = hub.uploads.received_bytes
    hub.fault("me/tiny:commit", None)
    done = r1mac("push", "me/tiny", str(model), "--yes")

    assert (broken.returncode, done.returncode) == (6, 0)
    assert before > 0
    assert hub.uploads.received_bytes == before
    assert served(hub)["config.json"] == (model / "config.json").read_bytes()


REFUSALS = [
    ({"HF_TOKEN": ""}, "me/tiny", None, (14, "wants a login", "hf auth login")),
    ({"HF_TOKEN": "hf_read"}, "me/tiny", None, (14, "may not write to me/tiny (403)", "may write")),
    ({}, "acme/tiny", None, (14, "may not write to acme/tiny (403)", "may write")),
    (
        {},
        "me/tiny",
        ("me/tiny:commit", Fault(status=409)),
        (6, "changed by somebody else", "run the same command again"),
    ),
    ({}, "me/tiny", ("me/tiny:object", Fault(status=403)), (14, "may not write", "may write")),
    ({}, "me/tiny", ("me/tiny:preupload", Fault(status=413)), (6, "answered 413", "again")),
    ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "me/tiny", None, (16, "cannot reach the Hub", "network")),
    ({"HF_HUB_OFFLINE": "1"}, "me/tiny", None, (16, "HF_HUB_OFFLINE", "unset")),
    ({}, "tiny", None, (3, "not the id of a Hub repository", "USER/NAME")),
    ({}, "me/a b", None, (3, "not the id of a Hub repository", "")),
]


@pytest.mark.parametrize(("variables", "repo", "fault", "outcome"), REFUSALS)
def test_refusal_is_one_sentence(hub, r1mac, model, environment, variables, repo, fault, outcome):
    """Whatever keeps a push from the Hub is one sentence, a hint and an exit code of its own."""
    if fault:
        hub.fault(*fault)
    failed = r1mac("push", repo, str(model), "--yes", "--quiet", env={**environment, **variables})

    assert failed.returncode == outcome[0], failed.stderr
    assert outcome[1] in failed.stderr
    assert outcome[2] in failed.stderr
    assert len(failed.stderr.splitlines()) == 2
    assert hub.uploads.commits == {}


def test_what_is_no_whole_model_stays_here(hub, r1mac, model):
    """A folder that r1mac did not make, or of which a file was changed, is refused before anything is uploaded."""
    config = model / "config.json"
    config.write_text(config.read_text() + " ")
    changed = r1mac("push", "me/tiny", str(model), "--yes")
    (model / "r1mac.json").unlink()
    foreign = r1mac("push", "me/tiny", str(model), "--yes")
    absent = r1mac("push", "me/tiny", "70b", "--yes")

    assert (changed.returncode, foreign.returncode, absent.returncode) == (7, 7, 3)
    assert "config.json is gone or has another size" in changed.stderr
    assert "no model that r1mac made" in foreign.stderr
    assert "is not on this disk" in absent.stderr
    assert hub.uploads.visibility == {}
