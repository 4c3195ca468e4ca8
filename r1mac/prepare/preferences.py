"""What ``r1mac tune`` keeps in config.toml: a table for each model, among what the user wrote there."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mac.errors import BadSettings
from r1mac.prepare.journal import ConfigChange, write_whole


def read_config(path: Path) -> str | None:
    """Return the text of config.toml, or None where there is no file.

    Raises:
        BadSettings: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} cannot be read: {error}", hint="correct that file") from error


def with_values(text: str | None, model: str, values: Mapping[str, int | None]) -> str:
    """Return config.toml's *text* with other settings of one model; None takes a setting out.

    All else stays as it is, comments included.

    Raises:
        BadSettings: the file writes its tables in a way that does not allow it.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document: Any = tomlkit.parse(text or "")
        if "models" not in document:
            document["models"] = tomlkit.table(is_super_table=True)
        if model not in document["models"]:
            document["models"][model] = tomlkit.table()
        table = document["models"][model]
        for name, value in values.items():
            if value is None:
                table.pop(name, None)
            else:
                table[name] = value
        if not table:
            del document["models"][model]
        if not document["models"]:
            del document["models"]
        new = tomlkit.dumps(document)
        right = tomllib.loads(new) == _expected(text or "", model, values)
    except (TOMLKitError, ValueError, AttributeError, TypeError):
        right = False
    if not right:
        raise BadSettings(
            "config.toml has a form into which r1mac cannot write the settings of a model",
            hint=f"write a table for each model there, such as [models.{model!r}], instead of models = {{ … }}",
        )
    return new


def _expected(text: str, model: str, values: Mapping[str, int | None]) -> dict[str, Any]:
    data = tomllib.loads(text)
    table = data.setdefault("models", {}).setdefault(model, {})
    for name, value in values.items():
        table.pop(name, None)
        if value is not None:
            table[name] = value
    if not table:
        del data["models"][model]
    if not data["models"]:
        del data["models"]
    return data


def values_of(text: str | None, model: str) -> dict[str, int]:
    """Return what config.toml's *text* says for one model."""
    return dict(tomllib.loads(text or "").get("models", {}).get(model, {}))


def extended(change: ConfigChange, text: str | None, new: str, model: str, values: Mapping[str, int]) -> ConfigChange:
    """Return the record of *change* with one more: from *text* to *new*, which says *values* for *model*."""
    there = values_of(text, model)
    known = change.values.get(model, {})
    own = {
        name: (known[name][0], (*known[name][1], value)) if name in known else (there.get(name), (value,))
        for name, value in values.items()
    }
    # Once somebody else has written there too, only single settings are taken back.
    untouched = not change.values or (bool(change.ours) and (text in change.ours or text == change.before))
    return ConfigChange(
        before=(change.before if change.values else text) if untouched else None,
        ours=(*change.ours, new) if untouched else (),
        values={**change.values, model: {**known, **own}},
    )


def undone(change: ConfigChange, text: str | None) -> str | None:
    """Return config.toml's *text* without what tune wrote; None for no file. What others changed since stays."""
    if text is None or text in change.ours:
        return change.before if text is not None else None
    for model, values in change.values.items():
        there = values_of(text, model)
        back = {name: before for name, (before, wrote) in values.items() if there.get(name) in wrote}
        if back:
            text = with_values(text, model, back)
    return text


def write_config(path: Path, text: str | None) -> None:
    """Write config.toml, or remove it.

    Raises:
        NotWritable: that is not possible.
    """
    if read_config(path) != text:
        write_whole(path, text)
