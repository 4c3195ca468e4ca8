"""Where things are on disk."""

from pathlib import Path

import platformdirs
import pytest

from r1mac import paths

PLACES = {
    "config.toml": paths.config_file,
    "models": paths.models_dir,
    "chat-history": paths.history_file,
    "chats": paths.chats_dir,
    "prompt-cache": paths.prompt_cache_dir,
}


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_r1mac_home_holds_everything(name, place):
    """R1MAC_HOME moves settings, models and history below one folder."""
    assert place({"R1MAC_HOME": "/volumes/big"}) == Path("/volumes/big") / name


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_a_tilde_in_r1mac_home_is_the_home(name, place, monkeypatch):
    """``~`` is understood where no shell replaced it."""
    monkeypatch.setenv("HOME", "/home/someone")

    assert place({"R1MAC_HOME": "~/r1"}) == Path("/home/someone/r1") / name


@pytest.mark.parametrize("environ", [{}, {"R1MAC_HOME": ""}])
def test_without_r1mac_home_the_systems_own_places_are_taken(environ):
    """Settings and data go where the operating system wants them; an empty variable is none."""
    assert paths.config_file(environ) == platformdirs.user_config_path("r1mac") / "config.toml"
    assert paths.models_dir(environ) == platformdirs.user_data_path("r1mac") / "models"
    assert paths.history_file(environ) == platformdirs.user_data_path("r1mac") / "chat-history"
    assert paths.chats_dir(environ) == platformdirs.user_data_path("r1mac") / "chats"
    assert paths.prompt_cache_dir(environ) == platformdirs.user_cache_path("r1mac") / "prompt-cache"


@pytest.mark.parametrize("place", PLACES.values())
def test_asking_for_a_place_does_not_make_it(place, tmp_path):
    """No folder or file appears because its path was asked for."""
    place({"R1MAC_HOME": str(tmp_path / "home")})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parts", [("catalog", "models.toml"), ("machine", "chips.csv")])
def test_shipped_files_are_there(parts):
    """Every data file that the package reads lies inside it."""
    assert paths.shipped(*parts).is_file()
