"""The state of a Mac: what ``sysctl``, ``vm_stat``, ``pmset`` and ``notifyutil`` say, and what it means.

Each takes a few milliseconds and needs no root. Every parser is a pure function of the text; what a text
does not say is None.
"""

import re
from collections.abc import Mapping

from r1mac.machine.command import Run
from r1mac.machine.readings import Boot, MemoryState, PowerMode, PowerSource, Pressure, Readings, Thermal
from r1mac.units import GIB, KIB, MIB

_SYSCTL = "/usr/sbin/sysctl"
MEMORY_SYSCTL = (_SYSCTL, "kern.memorystatus_vm_pressure_level", "vm.swapusage")
BOOT_SYSCTL = (_SYSCTL, "kern.bootsessionuuid", "kern.boottime")
STATE_SYSCTL = (
    *MEMORY_SYSCTL,
    "hw.model",
    "machdep.cpu.brand_string",
    "hw.optional.arm64",
    "sysctl.proc_translated",
)
VM_STAT = ("/usr/bin/vm_stat",)
POWER = ("/usr/bin/pmset", "-g")
BATTERY = ("/usr/bin/pmset", "-g", "batt")
# powermetrics would tell more, and needs root.
THERMAL = ("/usr/bin/notifyutil", "-g", "com.apple.system.thermalpressurelevel")

_PRESSURES: Mapping[str, Pressure] = {"1": "normal", "2": "warn", "4": "critical"}
_THERMALS: tuple[Thermal, ...] = ("nominal", "moderate", "heavy", "trapping", "sleeping")
_POWER_MODES: tuple[PowerMode, ...] = ("automatic", "low", "high")


def read_memory_state(run: Run) -> MemoryState:
    """Return pressure and swap: one sysctl."""
    return parse_memory_state(parse_sysctl(run(MEMORY_SYSCTL).stdout))


def read_boot(run: Run) -> Boot:
    """Return which start of this Mac it is: one sysctl."""
    return parse_boot(parse_sysctl(run(BOOT_SYSCTL).stdout))


def read_readings(run: Run, *, platform_machine: str) -> Readings:
    """Return the state of this Mac.

    Args:
        run: runs a command.
        platform_machine: what this Python was built for, ``"arm64"`` or ``"x86_64"``.
    """
    values = parse_sysctl(run(STATE_SYSCTL).stdout)
    pages = parse_page_bytes(run(VM_STAT).stdout)
    return Readings(
        memory=parse_memory_state(values),
        model=values.get("hw.model") or None,
        translated=is_translated(values, platform_machine),
        wired_bytes=pages.get("Pages wired down"),
        compressed_bytes=pages.get("Pages occupied by compressor"),
        power_source=parse_power_source(run(BATTERY).stdout),
        power_mode=parse_power_mode(run(POWER).stdout),
        thermal=read_thermal(run),
    )


def read_thermal(run: Run) -> Thermal | None:
    """Return how far this Mac has slowed down to cool: one notifyutil."""
    return parse_thermal(run(THERMAL).stdout)


def parse_sysctl(text: str) -> dict[str, str]:
    """Return the keys and values of *text*, lines of ``key: value`` (or ``key = value``, as older ones print).

    Other lines, such as ``sysctl: unknown oid 'iogpu.rsrc_limit'``, are left out.
    """
    matches = (_SYSCTL_LINE.fullmatch(line) for line in text.splitlines())
    return {match[1]: match[2].strip() for match in matches if match}


_SYSCTL_LINE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)+)\s*[:=](.*)")  # a key has at least one dot


def parse_memory_state(values: Mapping[str, str]) -> MemoryState:
    """Return pressure and swap from sysctl's *values*."""
    swap = values.get("vm.swapusage", "")
    return MemoryState(
        pressure=_PRESSURES.get(values.get("kern.memorystatus_vm_pressure_level", "")),
        swap_used_bytes=_swap_bytes(swap, "used"),
        swap_total_bytes=_swap_bytes(swap, "total"),
    )


_SWAP_UNITS = {"K": KIB, "M": MIB, "G": GIB}


def _swap_bytes(text: str, name: str) -> int | None:
    """Return one number of ``total = 2048.00M  used = 100.00M  free = 1948.00M  (encrypted)``."""
    match = re.search(rf"\b{name}\s*=\s*([0-9]{{1,12}})(?:[.,]([0-9]{{1,6}}))?([KMG])\b", text)
    if match is None:
        return None
    return round(float(f"{match[1]}.{match[2] or 0}") * _SWAP_UNITS[match[3]])


def parse_boot(values: Mapping[str, str]) -> Boot:
    """Return which start of this Mac it is from sysctl's *values*."""
    session = values.get("kern.bootsessionuuid", "")
    started = re.search(r"\bsec\s*=\s*([0-9]{1,12})\b", values.get("kern.boottime", ""))
    return Boot(
        session=session.upper() if re.fullmatch(r"[0-9A-Fa-f-]{36}", session) else None,
        started_at_s=int(started[1]) if started else None,
    )


def is_translated(values: Mapping[str, str], platform_machine: str) -> bool:
    """Tell whether this Python was built for Intel and runs under Rosetta.

    ``sysctl.proc_translated`` is about the sysctl process, which need not be what Python is, so what
    Python was built for is asked too; Rosetta may call the processor «VirtualApple @ 2.50GHz».
    """
    if values.get("sysctl.proc_translated") == "1":
        return True
    apple = values.get("hw.optional.arm64") == "1" or "Apple" in values.get("machdep.cpu.brand_string", "")
    return platform_machine == "x86_64" and apple


def parse_page_bytes(text: str) -> dict[str, int]:
    """Return the counts of vm_stat's *text* in bytes by name; empty where it does not tell the size of a page.

    Names come as they are, such as ``"Pages wired down"``, and without the quotes that one of them has.
    """
    header = re.search(r"page size of ([0-9]{1,9}) bytes", text)
    if header is None:
        return {}
    return {key: int(count) * int(header[1]) for key, count in _VM_STAT_LINE.findall(text)}


_VM_STAT_LINE = re.compile(r'^"?([^":\n]+)"?:[ \t]*([0-9]{1,18})\.?[ \t]*$', re.MULTILINE)


def parse_power_mode(text: str) -> PowerMode | None:
    """Return the mode in ``pmset -g``'s *text*; None where it names none.

    Macs print ``lowpowermode`` 0 or 1, with or without ``highpowermode``, or ``powermode`` 0, 1 or 2, which
    is the newer word and counts where both are there.
    """
    modes = {key: int(value) for key, value in _POWER_LINE.findall(text)}
    if modes.get("powermode") in range(len(_POWER_MODES)):
        return _POWER_MODES[modes["powermode"]]
    if modes.get("lowpowermode") == 1:
        return "low"
    if modes.get("highpowermode") == 1:
        return "high"
    return "automatic" if modes.keys() & {"lowpowermode", "highpowermode"} else None


_POWER_LINE = re.compile(r"^[ \t]*((?:low|high)?powermode)[ \t]+([0-9])[ \t]*$", re.MULTILINE)


def parse_power_source(text: str) -> PowerSource | None:
    """Return where the power in ``pmset -g batt``'s *text* comes from."""
    match = re.search(r"Now drawing from '(AC|Battery|UPS) Power'", text)
    if match is None:
        return None
    return "mains" if match[1] == "AC" else "battery"


def parse_thermal(text: str) -> Thermal | None:
    """Return the level in *text*, such as ``com.apple.system.thermalpressurelevel 0``."""
    words = text.split()
    if not words or not re.fullmatch(r"[0-9]{1,3}", words[-1]):
        return None
    level = int(words[-1])
    return _THERMALS[level] if level < len(_THERMALS) else None
