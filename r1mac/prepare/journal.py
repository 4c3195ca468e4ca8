"""What ``r1mac tune`` found before it changed anything: on the disk before the first change, so that it can be undone.

A crash may come between any two steps, so the record says what was about to be done, not only what was done.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mac import durable
from r1mac.errors import NotWritable
from r1mac.machine.readings import Boot
from r1mac.machine.wired_limit import WiredState

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """What tune writes into config.toml.

    Attributes:
        before: the file's text before tune wrote there; None if there was no file.
        ours: the texts that tune wrote, or was about to; while the file is one of them, nobody else changed it.
        values: model, then setting, to what stood there before (None: nothing) and what tune wrote.
    """

    before: str | None = None
    ours: tuple[str, ...] = ()
    values: Mapping[str, Mapping[str, tuple[int | None, tuple[int, ...]]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """How to undo what tune did.

    Attributes:
        boot: the start of the Mac in which it was done; the limit before counts for that one only.
        limit_mib: ``iogpu.wired_limit_mb`` before; 0 is macOS's own.
        daemon_mib: what r1mac's daemon set before at each start; None if there was none.
        daemon_changed: whether tune installed or removed that daemon since, or was about to.
        kept_mib: what it told the daemon to set.
        config: what was written into config.toml.
    """

    boot: Boot
    limit_mib: int
    daemon_mib: int | None = None
    daemon_changed: bool = False
    kept_mib: tuple[int, ...] = ()
    config: ConfigChange = field(default_factory=ConfigChange)

    def former_limit_mib(self, now: WiredState, boot: Boot) -> int:
        """Return what the limit would be now if tune had changed nothing.

        A limit lasts until the Mac starts again. So after another start it is what the former daemon, or
        somebody else's, would have set, unless it was set by hand since.
        """
        if self.boot.is_same_as(boot):
            return self.limit_mib
        at_start_mib = now.at_start_mib if now.daemon_mib is None else now.daemon_mib
        if now.limit_mib not in {at_start_mib, *self.kept_mib}:
            return now.limit_mib
        return now.at_start_mib if self.daemon_mib is None else self.daemon_mib


class UnreadableJournal(NotWritable):
    """There is a record of what tune changed, and it cannot be read; nothing is guessed from it."""


def load_journal(path: Path) -> Journal | None:
    """Return the record in *path*, or None where there is none.

    Raises:
        UnreadableJournal: there is one that cannot be read.
    """
    try:
        return parse_journal(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableJournal(
            f"the record of what tune changed cannot be read: {path} ({_reason(error)})",
            hint=f"`{set_aside(path)}` lets tune begin anew: what there was before its first change is then forgotten, "
            "and what is set now stays; `r1mac tune --status` shows that",
        ) from error


def set_aside(path: Path) -> str:
    """Return the command that moves a damaged record out of the way and keeps it."""
    return f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.bad')}"


def _reason(error: Exception) -> str:
    # A KeyError is its key alone.
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def save_journal(path: Path, journal: Journal | None) -> None:
    """Write the record to *path*, whole and on the disk; None removes it.

    Raises:
        NotWritable: that is not possible.
    """
    write_whole(path, None if journal is None else format_journal(journal))


def format_journal(journal: Journal) -> str:
    """Return the record as JSON."""
    config = journal.config
    data = {
        "format": _FORMAT,
        "boot": {"session": journal.boot.session, "started_at_s": journal.boot.started_at_s},
        "before": {"limit_mib": journal.limit_mib, "daemon_mib": journal.daemon_mib},
        "daemon_changed": journal.daemon_changed,
        "kept_mib": journal.kept_mib,
        "config": {"before": config.before, "ours": config.ours, "values": config.values},
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def parse_journal(text: str) -> Journal:
    """Return the record in *text*.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is none.
    """
    data = json.loads(text)
    if data["format"] != _FORMAT:
        raise ValueError(f"it is of format {data['format']!r}, and this r1mac knows {_FORMAT}")
    config = data["config"]
    return Journal(
        boot=Boot(session=data["boot"]["session"], started_at_s=data["boot"]["started_at_s"]),
        limit_mib=int(data["before"]["limit_mib"]),
        daemon_mib=_optional_int(data["before"]["daemon_mib"]),
        daemon_changed=bool(data["daemon_changed"]),
        kept_mib=tuple(int(mib) for mib in data["kept_mib"]),
        config=ConfigChange(
            before=_optional_text(config["before"]),
            ours=tuple(_text(text) for text in config["ours"]),
            values={model: _parse_values(values) for model, values in config["values"].items()},
        ),
    )


def _parse_values(values: Mapping[str, Any]) -> dict[str, tuple[int | None, tuple[int, ...]]]:
    return {
        name: (_optional_int(before), tuple(int(value) for value in wrote)) for name, (before, wrote) in values.items()
    }


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def write_whole(path: Path, text: str | None) -> None:
    """Give the file *path* the contents *text*, whole and on the disk, or nothing; None removes it.

    A link keeps pointing to the file, and the file keeps its permissions.

    Raises:
        NotWritable: that is not possible.
    """
    try:
        if text is None:
            durable.remove(path)
        else:
            durable.write_whole(path, text)
    except OSError as error:
        raise NotWritable(f"cannot write {path}: {error.strerror}", hint="make it writable for yourself") from error
