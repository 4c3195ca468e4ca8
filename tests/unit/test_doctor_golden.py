"""What the doctor prints on the Macs that people have: read once by a person, and kept (tests/golden/doctor).

The tools of each Mac are stubs that answer with recorded text. Chip, memory and macOS are of one recorded Mac
(tests/machines); its state is put together from captures of others (tests/captures), as each case says.
"""

import os
import plistlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from r1mac.doctor import computer
from r1mac.doctor.checks import CHECKS
from r1mac.doctor.examination import Examination, examine
from r1mac.engine.device import Device
from r1mac.machine import darwin
from r1mac.machine.base import HardwareProfile
from r1mac.settings import Settings
from r1mac.ui import doctor
from r1mac.units import GIB
from tests.doctors import NOW_S, store_large, store_model
from tests.goldens import assert_golden
from tests.macs import Mac
from tests.recorded import CAPTURES

CALM = {
    "kern.memorystatus_vm_pressure_level": 1,
    "vm.swapusage": "total = 2048.00M  used = 100.00M  free = 1948.00M  (encrypted)",
}
SHORT = {
    "kern.memorystatus_vm_pressure_level": 2,
    "vm.swapusage": "total = 13312.00M  used = 11625.69M  free = 1686.31M  (encrypted)",
}
NATIVE = {"sysctl.proc_translated": 0}


def capture(name: str) -> str:
    return (CAPTURES / name).read_text(encoding="utf-8")


def on_mains(mac: Mac) -> None:
    """A desktop: no battery, nothing to save."""
    mac.says("pmset -g", " Sleep On Power Button 1\n lowpowermode         0\n womp                 1\n")
    mac.says("pmset -g batt", "Now drawing from 'AC Power'\n")
    mac.says("notifyutil -g com.apple.system.thermalpressurelevel", "com.apple.system.thermalpressurelevel 0\n")


def on_its_own_disk(mac: Mac) -> None:
    mac.says(
        "df",
        "Filesystem 512-blocks Used Available Capacity Mounted on\n/dev/disk3s5 1942700360 961472248 854368512 53% /System/Volumes/Data\n",
    )
    mac.says("system_profiler SPStorageDataType -json", capture("ssd-1tb-with-usb/storage.json"))


def wires(pages: int) -> Callable[[Mac], None]:
    """So many pages of 16 KiB are wired."""
    text = f"Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages active: 281638.\nPages wired down: {pages}.\n"
    return lambda mac: mac.says("vm_stat", text)


def on_battery(mac: Mac) -> None:
    mac.says("pmset -g", capture("macbook-air/pmset.txt").replace("lowpowermode         0", "lowpowermode         1"))
    mac.says(
        "pmset -g batt",
        "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t19%; discharging; 1:02 remaining present: true\n",
    )
    mac.says("notifyutil", "com.apple.system.thermalpressurelevel 2\n")


def on_a_usb_disk(mac: Mac) -> None:
    on_its_own_disk(mac)
    mac.says(
        "df",
        "Filesystem 512-blocks Used Available Capacity Mounted on\n/dev/disk7s2 1953115488 868953408 1084162080 45% /Volumes/USB_TM_1TB\n",
    )


def cabled(name: str) -> Callable[[Mac], None]:
    return lambda mac: mac.says("system_profiler SPThunderboltDataType -json", capture(f"{name}/thunderbolt.json"))


def rdma(mac: Mac) -> None:
    mac.says("rdma_ctl status", "enabled\n")
    mac.says(
        "ibv_devices",
        "    device                 node GUID\n    ------              ----------------\n    rdma_en2            8096a9d9edbaac05\n",
    )


def no_rdma(mac: Mac) -> None:
    mac.says("rdma_ctl status", "disabled\n")


def crashed(mac: Mac) -> None:
    folder = mac.folder / "Library/Logs/DiagnosticReports"
    folder.mkdir(parents=True)
    for hours, name in ((5, "m4-mini-16gb-panic"), (30, "m5-pro-48gb-panic")):
        path = folder / f"panic-full-2025-11-22-{hours:02}0000.0002.panic"
        path.write_text(capture(f"{name}/panic.txt"))
        os.utime(path, (NOW_S - hours * 3600, NOW_S - hours * 3600))


def advised_by_a_blog(mac: Mac) -> None:
    (mac.folder / "etc").mkdir(exist_ok=True)
    (mac.folder / "etc/sysctl.conf").write_text("iogpu.wired_mem_alloc_limit_percent=95\n")
    arguments = ["/usr/sbin/sysctl", "-w", "iogpu.wired_limit_mb=122880"]
    mac.add_daemon(
        "com.example.gpu",
        plistlib.dumps({"Label": "com.example.gpu", "ProgramArguments": arguments, "RunAtLoad": True}),
    )


@dataclass(frozen=True)
class Case:
    """One Mac: whose recording it is, what is set, what its tools say, which models are stored."""

    recorded: str
    sysctl: dict = field(default_factory=dict)
    says: tuple[Callable[[Mac], None], ...] = (on_mains, on_its_own_disk)
    stores: Callable[[Path], None] | None = None
    on_gpu: bool = True
    gpu_core_count: int | None = None


CASES = {
    "m1-8gb": Case("m1-mini-8gb-macos26.3.2", CALM, stores=lambda folder: store_large(folder, weight_gb=40)),
    "m4-16gb": Case("m4-16gb-macos26", SHORT, (on_battery, on_its_own_disk)),
    "m4-max-36gb-macos15": Case("m4-max-36gb-macos15.7.7", CALM),
    "m3-max-36gb": Case("m3-max-36gb-macos26", CALM, (on_mains, on_a_usb_disk), stores=store_model),
    "m4-pro-48gb": Case("m4-pro-48gb-macos26", SHORT, stores=lambda folder: store_large(folder, weight_gb=40)),
    "m5-pro-64gb": Case("m5-pro-64gb-macos26.6.1", CALM, stores=lambda folder: store_large(folder, weight_gb=40)),
    "m3-max-96gb": Case(
        "m3-max-96gb-macos26",
        CALM,
        (on_mains, on_its_own_disk, crashed),
        stores=lambda folder: store_large(folder, weight_gb=75, bits=8),
    ),
    "m4-max-128gb-macos15": Case(
        "m4-max-128gb-macos15", CALM, stores=lambda folder: store_large(folder, weight_gb=75, bits=8)
    ),
    "m4-max-128gb": Case(
        "m4-max-128gb-macos26.2",
        CALM,
        (on_mains, on_its_own_disk, cabled("m5-max-macbook-pro-cabled"), no_rdma),
        stores=lambda folder: store_large(folder, weight_gb=75, bits=8),
    ),
    "m5-max-128gb-blog": Case(
        "m5-max-128gb-override",
        {**CALM, "iogpu.wired_limit_mb": 129_000},
        (on_mains, on_its_own_disk, advised_by_a_blog),
    ),
    "m3-ultra-512gb": Case(
        "m3-ultra-512gb-macos26",
        CALM,
        (on_mains, on_its_own_disk, cabled("m3-ultra-studio-cabled"), rdma, wires(27_131_904)),
    ),
    "m5-ultra-256gb": Case(
        "m3-ultra-256gb-macos15",
        {**CALM, "machdep.cpu.brand_string": "Apple M5 Ultra", "kern.osproductversion": "26.6.2"},
        gpu_core_count=80,
    ),
    "m6-32gb-macos27": Case("m6-mini-32gb-macos27.0.1", CALM),
    "virtual": Case("github-virtual-m1", {**CALM, "hw.memsize": 7 * GIB}, on_gpu=False),
    "intel": Case("intel-macbook-pro", {**CALM, "hw.optional.arm64": None}),
    "rosetta": Case("m4-16gb-macos26", {**CALM, "sysctl.proc_translated": 1}),
    "macos13": Case(
        "m2-max-64gb-macos26.6.2", {**CALM, "kern.osproductversion": "13.7.8", "iogpu.wired_limit_mb": None}
    ),
}


@pytest.fixture(autouse=True)
def _one_python_and_one_clock(monkeypatch):
    """What differs between the computers that run the tests."""
    monkeypatch.setattr("platform.python_version", lambda: "3.12.4")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(computer, "installed_version", {"mlx": "0.32.4", "mlx-lm": "0.32.2"}.get)
    monkeypatch.setattr(computer, "required_versions", lambda _package: "<0.33,>=0.32.2")
    monkeypatch.setattr(darwin, "free_disk_bytes", lambda _path: 437_436_678_144)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", CASES)
def test_what_the_doctor_prints(name, tmp_path, capsys):
    """Each Mac gets the report that was read and kept."""
    case = CASES[name]
    mac = Mac(tmp_path / "mac", case.recorded, sysctl=NATIVE | case.sysctl, gpu_core_count=case.gpu_core_count)
    for say in case.says:
        say(mac)
    models_dir = tmp_path / "models"
    if case.stores is not None:
        case.stores(models_dir)
    subject = Examination(
        mac.machine(), Settings(models_dir=models_dir), device=lambda: device_of(subject, case), now_s=NOW_S
    )
    doctor.show(examine(subject, CHECKS))

    printed = capsys.readouterr().out.replace(str(tmp_path / "mac"), "").replace(str(tmp_path), "~")
    assert_golden(f"doctor/{name}.txt", printed)


def device_of(subject: Examination, case: Case) -> Device:
    """Return what MLX would say on that Mac: the limit that its kernel has."""
    hardware = subject.profile_or_refusal
    assert isinstance(hardware, HardwareProfile)
    return Device(
        name=hardware.chip, on_gpu=case.on_gpu, working_set_bytes=hardware.wired_limit_bytes if case.on_gpu else None
    )
