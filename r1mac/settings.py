"""What the user prefers, as one frozen object.

Defaults < config.toml < its table for one model < ``R1MAC_*`` variables < flags.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from r1mac import paths
from r1mac.errors import BadSettings

CHOICES: dict[str, tuple[int, ...]] = {"bits": (2, 3, 4, 5, 6, 8, 16), "kv_bits": (16, 8, 4)}
RANGES: dict[str, tuple[float, float]] = {
    "context_tokens": (256, 2**31),
    "prefill_step_tokens": (1, 2**16),
    "max_tokens": (1, 2**31),
    "parallel": (1, 64),
    "temperature": (0, 2),
    "top_p": (0.001, 1),
    "top_k": (0, 2**31),
    "min_p": (0, 1),
    "prompt_cache_gb": (0, 10**6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The preferences of one run. A field of None means «let r1mac choose».

    Attributes:
        bits: width of the weights to fetch or to convert to; 16 is unquantised.
        kv_bits: width of the KV cache's values; 16 is the type that the model computes in.
        context_tokens: longest conversation to plan memory for.
        prefill_step_tokens: most of a prompt to read at once.
        max_tokens: longest answer, thought included.
        parallel: how many replies may be written at once.
        temperature: 0 is greedy.
        top_p: nucleus of the sampler.
        top_k: at most so many of the likeliest tokens; 0 for all.
        min_p: only tokens at least so likely beside the likeliest.
        draft: ``off``, or who drafts tokens: ``lookup`` (the text itself), ``auto`` (a smaller sibling) or a model.
        save_chats: whether conversations at the terminal are kept, so that ``run --continue`` goes on with them.
        prompt_cache_gb: the most, in units of 10⁹ bytes, to keep on disk of what models have read; 0 keeps nothing.
        models_dir: the model store.
        said: the names that the command line gave, which bind more than a preference does.
        unsaid: what the command line's values stand in place of.
        firm: the names that a variable gave, which hold for every model, as those that were said do.
        models: what config.toml says for one model alone, such as ``[models."r1-distill-70b"]``.
    """

    bits: int | None = None
    kv_bits: int | None = None
    context_tokens: int | None = None
    prefill_step_tokens: int | None = None
    max_tokens: int | None = None
    parallel: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    save_chats: bool | None = None
    draft: str | None = None
    prompt_cache_gb: float | None = None
    models_dir: Path = field(default_factory=paths.models_dir)
    said: frozenset[str] = frozenset()
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    firm: frozenset[str] = frozenset()
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def for_model(self, *names: str, bits: int | None = None) -> "Settings":
        """Return the settings of the model that has these *names*, in the catalog or in the store.

        What its table keeps was chosen for weights of the table's width: at other *bits* only what all widths
        share is taken.
        """
        table = next((self.models[name] for name in names if name in self.models), {})
        own = {key: value for key, value in table.items() if key not in self.firm | self.said}
        if bits is not None and table.get("bits", bits) != bits:
            own = {key: value for key, value in own.items() if key not in _BOUND_TO_BITS}
        return replace(self, **own)

    def without_flags(self) -> "Settings":
        """Return what holds where the command line says nothing."""
        return replace(self, **self.unsaid, said=frozenset(), unsaid={})


def load(environ: Mapping[str, str] = os.environ, **flags: Any) -> Settings:
    """Return the settings of this run.

    Args:
        environ: the environment variables.
        flags: what the command line said; None is «not said».

    Raises:
        BadSettings: an unknown name, or a value of the wrong type, and where it stands.
    """
    values, models = _config_values(paths.config_file(environ))
    settings = _apply(Settings(models_dir=paths.models_dir(environ), models=models), values)
    variables = {
        name: (value, f"the environment variable R1MAC_{name.upper()}")
        for name in _KINDS
        if (value := environ.get(f"R1MAC_{name.upper()}")) is not None
    }
    settings = replace(_apply(settings, variables), firm=frozenset(variables))
    said = {name: (value, _flag(name)) for name, value in flags.items() if value is not None}
    unsaid = {name: getattr(settings, name) for name in said}
    return replace(_apply(settings, said), said=frozenset(said), unsaid=unsaid)


_BOUND_TO_BITS = {"bits", "kv_bits", "context_tokens", "prefill_step_tokens"}


def _flag(name: str) -> str:
    """Return the option that says *name* on the command line."""
    return "--context" if name == "context_tokens" else "--" + name.replace("_", "-")


_KINDS: dict[str, type] = {
    "bits": int,
    "kv_bits": int,
    "context_tokens": int,
    "prefill_step_tokens": int,
    "max_tokens": int,
    "parallel": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "draft": str,
    "save_chats": bool,
    "prompt_cache_gb": float,
    "models_dir": Path,
}
assert set(_KINDS) == {item.name for item in fields(Settings)} - {"said", "unsaid", "firm", "models"}


def _config_values(path: Path) -> tuple[dict[str, tuple[object, str]], dict[str, dict[str, Any]]]:
    """Return name to (value, where it stands) from config.toml, and model to its own values; nothing without a file."""
    if not path.is_file():
        return {}, {}
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} is not valid TOML: {error}", hint="correct that line, or delete the file") from error
    models = _model_values(data.pop("models", {}), path)
    return {name: (value, str(path)) for name, value in data.items()}, models


def _model_values(tables: object, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise BadSettings(
            f"models in {path} must be tables, one for each model",
            hint='write [models."r1-distill-70b"], and its settings below',
        )
    found: dict[str, dict[str, Any]] = {}
    for model, table in tables.items():
        where = f"{path}, table [models.{model!r}],"
        values = {name: (value, where) for name, value in table.items()}
        if "models_dir" in values:
            raise BadSettings(f"{where} has models_dir, which is one for all models", hint="put it above the tables")
        settings = _apply(Settings(models_dir=path), values)
        found[model] = {name: getattr(settings, name) for name in values}
    return found


def _apply(settings: Settings, values: Mapping[str, tuple[object, str]]) -> Settings:
    changes: dict[str, Any] = {}
    for name, (value, where) in values.items():
        kind = _KINDS.get(name)
        if kind is None:
            raise BadSettings(f"{where} has an unknown setting {name!r}", hint=f"known settings: {', '.join(_KINDS)}")
        changes[name] = _checked(name, kind, value, where)
    return replace(settings, **changes)


def _checked(name: str, kind: type, value: object, where: str) -> object:
    try:
        read = {Path: _folder, bool: _yes_or_no, str: _text}.get(kind)
        result = read(value) if read else kind(str(value))
        if isinstance(result, float) and not math.isfinite(result):
            raise ValueError
    # RuntimeError: expanduser knows nobody of that name.
    except (ValueError, RuntimeError) as error:
        wanted = {int: "a whole number", float: "a number", bool: "true or false", Path: "a folder", str: "a text"}[
            kind
        ]
        raise BadSettings(f"{name} must be {wanted}, and {where} says {value!r}", hint="correct that value") from error
    if name in CHOICES and result not in CHOICES[name]:
        known = ", ".join(map(str, CHOICES[name]))
        raise BadSettings(f"{name} must be one of {known}, and {where} says {value!r}", hint="correct that value")
    if name in RANGES and isinstance(result, int | float):
        least, most = RANGES[name]
        if not least <= result <= most:
            raise BadSettings(
                f"{name} must be from {least:g} to {most:g}, and {where} says {value!r}", hint="correct that value"
            )
    return result


def _yes_or_no(value: object) -> bool:
    text = str(value).lower()
    if text not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
        raise ValueError
    return text in {"true", "1", "yes", "on"}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _folder(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError
    return Path(value).expanduser()
