"""Preferences: who overrules whom, and what is refused."""

from itertools import product
from pathlib import Path

import pytest

from r1mac import settings
from r1mac.errors import BadSettings

# One value of each setting for each place that can say it; each differs from what it overrules.
VALUES = {
    "bits": (3, 6, 8),
    "kv_bits": (4, 8, 16),
    "prefill_step_tokens": (128, 256, 512),
    "context_tokens": (4096, 8192, 16384),
    "max_tokens": (100, 200, 300),
    "temperature": (0.1, 0.2, 0.3),
    "top_p": (0.7, 0.8, 0.9),
    "top_k": (10, 20, 30),
    "min_p": (0.01, 0.02, 0.03),
    "parallel": (2, 3, 4),
    "draft": ("off", "lookup", "off"),
    "save_chats": (True, False, True),
    "prompt_cache_gb": (1.5, 0.0, 20.0),
    "models_dir": (Path("/a"), Path("/b"), Path("/c")),
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def load(home: Path, config: str | bytes | None = None, **environ_and_flags: object) -> settings.Settings:
    """Load settings with *config* as config.toml; names in capitals are variables, others are flags."""
    home.mkdir(exist_ok=True)
    if config is not None:
        (home / "config.toml").write_bytes(config if isinstance(config, bytes) else config.encode())
    environ = {name: str(value) for name, value in environ_and_flags.items() if name.isupper()}
    flags = {name: value for name, value in environ_and_flags.items() if not name.isupper()}
    return settings.load({"R1MAC_HOME": str(home), **environ}, **flags)


def toml(name: str, value: object) -> str:
    """Return one line of config.toml."""
    if isinstance(value, bool):
        return f"{name} = {str(value).lower()}\n"
    return f"{name} = {str(value)!r}\n" if isinstance(value, Path | str) else f"{name} = {value}\n"


def variable(name: str) -> str:
    """Return the name of a setting's variable."""
    return f"R1MAC_{name.upper()}"


def test_the_table_of_values_knows_every_setting():
    """The tests below speak about every setting that there is."""
    assert VALUES.keys() == settings.Settings.__dataclass_fields__.keys() - {"said", "unsaid", "firm", "models"}


def test_without_anything_said_r1mac_chooses(home):
    """Unsaid settings are None, and models lie below the home folder."""
    found = load(home)

    assert found == settings.Settings(models_dir=home / "models")
    assert {getattr(found, name) for name in VALUES if name != "models_dir"} == {None}


@pytest.mark.parametrize("name", VALUES)
def test_config_overrules_the_default(name, home):
    """A line of config.toml takes effect, with the type that the setting has."""
    value = VALUES[name][0]

    found = getattr(load(home, toml(name, value)), name)

    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_overrules_config(name, home):
    """An R1MAC_* variable takes effect over config.toml."""
    in_config, in_variable, _ = VALUES[name]

    found = load(home, toml(name, in_config), **{variable(name): in_variable})

    assert getattr(found, name) == in_variable


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_overrules_everything(name, home):
    """What the command line says takes effect over variable and config.toml."""
    in_config, in_variable, in_flag = VALUES[name]

    found = load(home, toml(name, in_config), **{variable(name): in_variable, name: in_flag})

    assert getattr(found, name) == in_flag


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_that_was_not_given_overrules_nothing(name, home):
    """A flag of None is «not said»."""
    in_config = VALUES[name][0]

    assert getattr(load(home, toml(name, in_config), **{name: None}), name) == in_config


def test_zero_is_a_value(home):
    """A temperature of 0 is greedy decoding and not «unsaid», in every place."""
    assert load(home, "temperature = 0").temperature == 0
    assert load(home, "temperature = 0.5", R1MAC_TEMPERATURE="0").temperature == 0
    assert load(home, "temperature = 0.5", temperature=0.0).temperature == 0


def test_settings_do_not_mix(home):
    """Each setting is taken from the strongest place that says it, whatever the others say."""
    found = load(home, "bits = 3\nmax_tokens = 100\n", R1MAC_MAX_TOKENS=200, temperature=0.3)

    assert (found.bits, found.max_tokens, found.temperature, found.top_p) == (3, 200, 0.3, None)


@pytest.mark.parametrize("where", ["config", "variable"])
def test_a_tilde_in_models_dir_is_the_home(where, home, monkeypatch):
    """``~`` is understood in config.toml and in variables, where no shell replaces it."""
    monkeypatch.setenv("HOME", "/home/someone")

    found = load(home, "models_dir = '~/m'") if where == "config" else load(home, R1MAC_MODELS_DIR="~/m")

    assert found.models_dir == Path("/home/someone/m")


# As a text, which is also what a variable holds; in config.toml it is written without and with quotes.
WRONG = [
    ("bits", "four"),
    ("bits", "7"),
    ("bits", "4.0"),
    ("bits", "-4"),
    ("bits", ""),
    ("context_tokens", "lots"),
    ("context_tokens", "-1"),
    ("context_tokens", "32k"),
    ("max_tokens", "1.5"),
    ("max_tokens", "-7"),
    ("temperature", "hot"),
    ("temperature", "-0.1"),
    ("temperature", "nan"),
    ("save_chats", "maybe"),
    ("save_chats", "2"),
    ("prompt_cache_gb", "-1"),
    ("prompt_cache_gb", "20gb"),
    ("temperature", "inf"),
    ("top_p", "most"),
    ("top_p", "-1.0"),
    ("top_p", "nan"),
    ("models_dir", ""),
    ("models_dir", "~nobody-has-this-name/models"),
]


def _refusal(home: Path, *args: str, **environ: str) -> str:
    with pytest.raises(BadSettings) as caught:
        load(home, *args, **environ)
    assert caught.value.hint
    return caught.value.problem


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_variable_is_refused_with_its_name_and_value(name, value, home):
    """A wrong value in a variable is BadSettings that names the setting, the variable and the value."""
    problem = _refusal(home, **{variable(name): value})

    assert name in problem
    assert variable(name) in problem
    assert repr(value) in problem


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_line_of_config_is_refused_with_its_place_and_value(name, value, home):
    """A wrong value in config.toml is BadSettings that names the setting, the file and the value."""
    problem = _refusal(home, f'{name} = "{value}"')

    assert name in problem
    assert str(home / "config.toml") in problem
    assert repr(value) in problem


OTHER_KINDS = ["true", "[1]", "{ a = 1 }", "2026-11-01", "nan", "-inf", "-1", "1e999"]


@pytest.mark.parametrize(("name", "value"), sorted({*product(VALUES, OTHER_KINDS)} - {("save_chats", "true")}))
def test_values_of_another_kind_are_refused(name, value, home):
    """TOML's other kinds of values are refused for every setting, a folder that is not a text included."""
    problem = _refusal(home, f"{name} = {value}")

    assert name in problem
    assert str(home / "config.toml") in problem


def test_an_unknown_name_in_config_is_refused_with_the_known_ones(home):
    """A slip in a name is not ignored: it is quoted, and the hint lists every setting."""
    with pytest.raises(BadSettings) as caught:
        load(home, "bit = 4")

    assert "'bit'" in caught.value.problem
    assert str(home / "config.toml") in caught.value.problem
    assert all(name in caught.value.hint for name in VALUES)


@pytest.mark.parametrize(
    "text",
    ["bits 4", "bits = ", "[", "bits = 4\nbits = 3", "bits = 4\x00", b"\xff\xfe", "a" * 10, "=4"],
)
def test_what_is_not_toml_is_refused_with_the_files_name(text, home):
    """A file that is not TOML is BadSettings, and never another exception."""
    problem = _refusal(home, text)

    assert str(home / "config.toml") in problem
    assert "not valid TOML" in problem


def test_an_empty_config_says_nothing(home):
    """An empty config.toml and one of comments are as good as none."""
    assert load(home, "") == load(home, "# nothing yet\n") == load(home)


def test_settings_cannot_be_changed(home):
    """Settings are frozen: what a run began with it ends with."""
    with pytest.raises(AttributeError):
        load(home).bits = 3
