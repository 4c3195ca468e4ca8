"""A Mac's ports and disks: what ``system_profiler``, ``rdma_ctl``, ``ibv_devices`` and ``df`` say.

system_profiler takes a third of a second for each subject, so it is asked only for what sysctl does not know.
"""

import re
from pathlib import Path
from typing import Any

from r1mac.machine.command import Run
from r1mac.machine.readings import Disk, Port, Thunderbolt

THUNDERBOLT = ("/usr/sbin/system_profiler", "SPThunderboltDataType", "-json")
STORAGE = ("/usr/sbin/system_profiler", "SPStorageDataType", "-json")
RDMA_STATUS = ("/usr/bin/rdma_ctl", "status")
RDMA_DEVICES = ("/usr/bin/ibv_devices",)


def read_thunderbolt(run: Run) -> Thunderbolt:
    """Return the Thunderbolt ports of this Mac, and whether RDMA is on."""
    status = run(RDMA_STATUS).stdout.strip()
    return Thunderbolt(
        ports=parse_ports(run(THUNDERBOLT).stdout),
        rdma="enabled" if status == "enabled" else "disabled" if status == "disabled" else None,
        rdma_devices=parse_rdma_devices(run(RDMA_DEVICES).stdout),
    )


def read_disk(run: Run, path: Path) -> Disk:
    """Return the kind of the volume that *path* lies on; *path* must exist."""
    device = parse_device(run(("/bin/df", "-P", str(path))).stdout)
    if device is None:
        return Disk()
    if not device.startswith("/dev/"):  # «//user@server/share», «server:/export»
        return Disk(kind="network", connection=device)
    return parse_disk(run(STORAGE).stdout, device.removeprefix("/dev/"))


def parse_ports(text: str) -> tuple[Port, ...]:
    """Return the ports in system_profiler's *text*, by receptacle.

    What is connected counts as a computer only if it names its own domain, which a drive does not.
    """
    ports = []
    for bus in _items(text, "SPThunderboltDataType"):
        for key, receptacle in bus.items():
            if not key.startswith("receptacle_") or not isinstance(receptacle, dict):
                continue
            number = receptacle.get("receptacle_id_key")
            if not isinstance(number, str):
                continue
            speed = re.search(r"([0-9]{1,4}) Gb/s", str(receptacle.get("current_speed_key", "")))
            ports.append(Port(name=number, gbit_per_s=int(speed[1]) if speed else None, peer=_peer(bus)))
    return tuple(sorted(ports, key=lambda port: (len(port.name), port.name)))


def _peer(bus: dict[str, Any]) -> str | None:
    items = bus.get("_items")
    computers = [
        item["_name"]
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict) and item.get("domain_uuid_key") and isinstance(item.get("_name"), str)
    ]
    return computers[0] if computers else None


def parse_rdma_devices(text: str) -> tuple[str, ...]:
    """Return the devices of ``ibv_devices``'s *text*: a header, dashes, then a name and a GUID each."""
    return tuple(re.findall(r"^[ \t]*(rdma_\w+)[ \t]+[0-9a-f]{16}[ \t]*$", text, re.MULTILINE))


def parse_device(text: str) -> str | None:
    """Return the device in ``df -P``'s *text*, the answer to one path: ``/dev/disk3s5``, ``//me@nas/models``."""
    lines = text.splitlines()
    match = re.match(r"(\S.*?)\s+[0-9]+\s+[0-9]+\s+-?[0-9]+\s+[0-9]+%\s", lines[1]) if len(lines) > 1 else None
    return match[1] if match else None


def parse_disk(text: str, device: str) -> Disk:
    """Return the volume *device*, such as ``"disk3s5"``, in system_profiler's *text*."""
    volume = next((item for item in _items(text, "SPStorageDataType") if item.get("bsd_name") == device), None)
    if volume is None:
        return Disk()
    drive = volume.get("physical_drive")
    drive = drive if isinstance(drive, dict) else {}
    inside = {"yes": True, "no": False}.get(str(drive.get("is_internal_disk")))
    return Disk(
        kind=None if inside is None else "internal" if inside else "external",
        file_system=_text(volume, "file_system"),
        connection=_text(drive, "protocol"),
    )


def _items(text: str, subject: str) -> list[dict[str, Any]]:
    import json

    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return []
    items = data.get(subject) if isinstance(data, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _text(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) and value else None
