"""Memory: what the GPU may hold, what sets that, and how short memory is now."""

import shlex
from collections.abc import Iterator

from r1mac import paths
from r1mac.doctor.examination import CheckResult, Examination
from r1mac.engine.device import Device
from r1mac.machine.base import WIRED_LIMIT_KEY, HardwareProfile
from r1mac.machine.darwin import RESET_WIRED_LIMIT
from r1mac.machine.readings import StartupSetting
from r1mac.machine.wired_limit import LABEL
from r1mac.plan.tune import limits_of
from r1mac.prepare.journal import UnreadableJournal, load_journal, set_aside
from r1mac.units import format_memory

_STRANDED_SHARE = 0.5
_SWAPPED_SHARE = 0.25


def check_wired_limit(examination: Examination) -> Iterator[CheckResult]:
    """Say how much memory the GPU may hold, and whether everybody agrees on that."""
    mac = examination.mac
    if mac is None:
        return
    limits = limits_of(mac)
    found = f"{format_memory(mac.wired_limit_bytes)} of {format_memory(mac.memory_bytes)}"
    found += f" ({mac.wired_limit_origin})"
    if limits.too_high:
        left = mac.memory_bytes - mac.wired_limit_bytes
        rest = f"only {format_memory(left)} remain for macOS" if left > 0 else "that is more than all of the memory"
        yield CheckResult(
            name="wired limit",
            status="fail",
            found=found,
            why=f"{rest}: with less than 4 GiB, Macs froze and crashed as a whole",
            fix=f"{RESET_WIRED_LIMIT}, then `r1mac tune MODEL`",
        )
    elif limits.set_mib and mac.wired_limit_bytes < limits.default_bytes:
        yield CheckResult(
            name="wired limit",
            status="warn",
            found=found,
            why=f"macOS by itself would allow {format_memory(limits.default_bytes)}",
            fix=RESET_WIRED_LIMIT,
        )
    else:
        yield CheckResult(name="wired limit", status="ok", found=found)
    yield from _disagreements(examination, mac)


def _disagreements(examination: Examination, mac: HardwareProfile) -> Iterator[CheckResult]:
    device = examination.device
    if isinstance(device, Device) and device.working_set_bytes not in {None, mac.wired_limit_bytes}:
        assert device.working_set_bytes is not None
        yield CheckResult(
            name="wired limit in MLX",
            status="warn",
            found=f"MLX is told {format_memory(device.working_set_bytes)} ({device.working_set_bytes} bytes)",
            why="r1mac's plans are made for the number above, so they promise too much or too little",
            fix="restart this Mac"
            if mac.wired_limit_source == "override"
            else "please report both numbers with your Mac's model and macOS, so that r1mac learns this default",
        )
    for holder in examination.holders:
        if holder.wired_limit_bytes != mac.wired_limit_bytes:
            yield CheckResult(
                name="process",
                subject=str(holder.pid),
                status="warn",
                found=f"{holder.title} was started under a limit of {format_memory(holder.wired_limit_bytes)}",
                why="a process keeps the limit that it found at its start",
                fix=f"start it again: kill {holder.pid}"
                if holder.is_own
                else "another user of this Mac runs it and would have to start it again",
            )


def check_startup(examination: Examination) -> Iterator[CheckResult]:
    """Say what sets the wired limit when the Mac starts, and whether it did."""
    mac = examination.mac
    if mac is None:
        return
    set_mib = limits_of(mac).set_mib
    for setting in examination.startup_settings:
        if setting.path.suffix != ".plist":
            yield _unread(setting)
        elif setting.key == WIRED_LIMIT_KEY:
            yield _daemon(setting, set_mib, limits_of(mac).bearable_mib)


def _unread(setting: StartupSetting) -> CheckResult:
    exists = "" if setting.key == WIRED_LIMIT_KEY else f"; macOS knows no {setting.key}"
    return CheckResult(
        name="limit at start",
        status="warn",
        found=f"{setting.path} has {setting.key}={setting.value}",
        why=f"macOS does not read that file, whatever some guides say{exists}",
        fix=f"delete that line; `r1mac tune MODEL --apply --persist` sets {WIRED_LIMIT_KEY} at each start",
    )


def _daemon(setting: StartupSetting, set_mib: int, bearable_mib: int) -> CheckResult:
    own = setting.path.stem == LABEL
    found = f"{setting.path.name} sets {setting.value} MiB"
    remove = "r1mac tune --undo" if own else f"sudo rm {shlex.quote(str(setting.path))}"
    if setting.value > bearable_mib:
        return CheckResult(
            name="limit at start",
            status="fail",
            found=found,
            why="that leaves less than 4 GiB for macOS, at every start: Macs froze and crashed as a whole",
            fix=remove,
        )
    if setting.value != set_mib:
        now = f"{set_mib} MiB" if set_mib else "macOS's own limit"
        return CheckResult(
            name="limit at start",
            status="warn",
            found=f"{found}, and in force is {now}",
            why="the daemon did not run, something else changed the limit since, or two of them disagree",
            fix=f"restart this Mac, or remove it: {remove}",
        )
    return CheckResult(name="limit at start", status="ok", found=found)


def check_tuning_record(examination: Examination) -> Iterator[CheckResult]:
    """Say whether what tune noted before its first change can be read."""
    if examination.mac is None:
        return
    try:
        load_journal(paths.tuning_file())
    except UnreadableJournal as error:
        yield CheckResult(
            name="tuning record",
            status="warn",
            found=error.problem,
            why="`r1mac tune` changes and undoes nothing while it is there; without it, what was before is forgotten",
            fix=set_aside(paths.tuning_file()),
        )


def check_pressure(examination: Examination) -> Iterator[CheckResult]:
    """Say how short memory is."""
    pressure = examination.readings.memory.pressure
    if pressure is None:
        return
    if pressure == "normal":
        yield CheckResult(name="memory pressure", status="ok", found="normal")
        return
    yield CheckResult(
        name="memory pressure",
        status="warn" if pressure == "warn" else "fail",
        found=pressure if pressure == "critical" else "raised",
        why="macOS compresses and swaps what is not wired; a model that is caught by it decodes tens of times slower",
        fix="quit what holds much memory (Activity Monitor > Memory), or take a smaller plan: `r1mac plan`",
    )


def check_swap(examination: Examination) -> Iterator[CheckResult]:
    """Say how much memory lies on disk."""
    memory, hardware = examination.readings.memory, examination.hardware
    if memory.swap_used_bytes is None or hardware is None:
        return
    found = f"{format_memory(memory.swap_used_bytes)} in use"
    # A calm Mac keeps on disk what nobody has asked for in days.
    if memory.pressure == "normal" or memory.swap_used_bytes < _SWAPPED_SHARE * hardware.memory_bytes:
        yield CheckResult(name="swap", status="ok", found=found)
        return
    yield CheckResult(
        name="swap",
        status="warn",
        found=f"{found}, with {format_memory(hardware.memory_bytes)} of memory",
        why="programs do not fit into memory even before a model is loaded",
        fix="quit what you do not need, or restart the computer",
    )


def check_wired_memory(examination: Examination) -> Iterator[CheckResult]:
    """Say whether a process that is gone still holds memory: macOS leaks what a killed one had wired."""
    mac, wired_bytes = examination.mac, examination.readings.wired_bytes
    if mac is None or wired_bytes is None:
        return
    found = f"{format_memory(wired_bytes)} of {format_memory(mac.memory_bytes)}"
    if examination.holders:
        held = ", ".join(f"{holder.title} (process {holder.pid})" for holder in examination.holders)
        yield CheckResult(name="wired memory", status="ok", found=f"{found}, while r1mac runs {held}")
    elif wired_bytes <= _STRANDED_SHARE * mac.memory_bytes:
        yield CheckResult(name="wired memory", status="ok", found=found)
    else:
        killed = [run for run in examination.unfinished if run.ending == "killed"]
        yield CheckResult(
            name="wired memory",
            status="fail" if killed else "warn",
            found=f"{found}, and no r1mac runs",
            why="macOS may keep what a killed process had wired until it restarts; a model finds no room meanwhile",
            fix="restart this Mac"
            if killed
            else "quit other programs with a model (LM Studio, Ollama …); if it stays, restart this Mac",
        )
