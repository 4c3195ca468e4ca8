"""Files of macOS that tell of this Mac: reports of panics, and what sets the GPU's memory at its start.

They are read and never written. A folder that may not be read is not the same as an empty one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from r1mac.machine.readings import Panic, StartupSetting

PANIC_REPORTS = Path("Library/Logs/DiagnosticReports")
LAUNCH_DAEMONS = Path("Library/LaunchDaemons")
SYSCTL_CONF = Path("etc/sysctl.conf")

_MAX_REPORT_BYTES = 8 * 2**20
_MAX_PLIST_BYTES = 2**20


def read_panics(root: Path, *, since_s: float) -> tuple[Panic, ...] | None:
    """Return the panics below *root* whose report was written at or after *since_s*, the latest first.

    None says that the reports may not be read, as is so for a user without an administrator's rights.
    """
    found = []
    try:
        for path in _reports(root / PANIC_REPORTS):
            written_s = path.stat().st_mtime
            if written_s >= since_s:
                with path.open("rb") as file:
                    text = file.read(_MAX_REPORT_BYTES).decode("utf-8", "replace")
                found.append(parse_panic(text, path=path, at_s=written_s))
    except OSError:
        return None
    return tuple(sorted(found, key=lambda panic: -panic.at_s))


def _reports(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "Retired"):  # where a report goes that was sent to Apple
        if place.is_dir():
            yield from (path for path in place.iterdir() if _REPORT.fullmatch(path.name))


# panic-full-2026-08-18-092125.0002.panic; with «base» where the full report could not be written.
_REPORT = re.compile(r"panic-(?:full|base)[-+.\w]*\.panic")


def parse_panic(text: str, *, path: Path, at_s: float) -> Panic:
    """Return what a report says: a line of JSON, then a JSON object or plain text with the kernel's words.

    The words are found wherever they stand: reports are cut off, and their form changed between releases.
    """
    plain = text.replace("\\n", "\n").replace('\\"', '"')
    start = re.search(r"panic\(cpu [0-9]+(?: caller 0x[0-9a-f]+)?\):\s*(.{1,300})", plain)
    reason = start[1].strip() if start else "a panic whose reason the report does not tell"
    task = re.search(r"Panicked task 0x[0-9a-f]+:.*?pid [0-9]+: ([^\n\"]{1,80})", plain)
    task = task or re.search(r"Panicked task: pid [0-9]+: ([^\n\"]{1,80})", plain)
    session = re.search(r"Boot session UUID: ([0-9A-F-]{36})", plain)
    return Panic(
        path=path,
        at_s=at_s,
        reason=reason,
        cause=next((cause for cause, words in _CAUSES.items() if re.search(words, reason)), "other"),
        task=task[1].strip() if task else None,
        session=session[1] if session else None,
    )


# «"completeMemory() prepare count underflow" @IOGPUMemory.cpp:550», «@IOGPUGroupMemory.cpp:323»;
# «watchdog timeout: no checkins from watchdogd in 93 seconds».
_CAUSES: dict[Literal["gpu", "starved", "other"], str] = {
    "gpu": r"IOGPU|completeMemory\(\)",
    "starved": r"watchdog timeout: no (?:successful )?checkins",
}


def read_startup_settings(root: Path) -> tuple[StartupSetting, ...]:
    """Return what launchd's plists and sysctl.conf below *root* would set of the GPU's memory."""
    settings: list[StartupSetting] = []
    for path in sorted((root / LAUNCH_DAEMONS).glob("*.plist")):
        settings += [StartupSetting(path=path, key=key, value=value) for key, value in _plist_settings(path)]
    conf = root / SYSCTL_CONF
    settings += [StartupSetting(path=conf, key=key, value=value) for key, value in _conf_settings(conf)]
    return tuple(settings)


def parse_settings(command: str) -> list[tuple[str, int]]:
    """Return the GPU keys and values that *command* would set, such as ``sysctl -w iogpu.wired_limit_mb=57344``."""
    return [(key, int(value)) for key, value in _SETTING.findall(command)]


_SETTING = re.compile(r"\b((?:debug\.)?iogpu\.\w+)\s*=\s*\"?([0-9]{1,18})\b")


def _conf_settings(path: Path) -> Iterator[tuple[str, int]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    yield from dict(setting for line in lines for setting in parse_settings(line.partition("#")[0])).items()


def _plist_settings(path: Path) -> Iterator[tuple[str, int]]:
    import plistlib
    from xml.parsers.expat import ExpatError

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PLIST_BYTES)
        if b"iogpu" not in content and not content.startswith(b"bplist"):
            return
        data = plistlib.loads(content)
    except (OSError, ValueError, plistlib.InvalidFileException, ExpatError, LookupError, RecursionError):
        return
    arguments = data.get("ProgramArguments") if isinstance(data, dict) else None
    if isinstance(arguments, list):
        # A shell loop names the key twice, once to read it back.
        yield from dict(parse_settings("\n".join(map(str, arguments)))).items()
