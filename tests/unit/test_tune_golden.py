"""What ``r1mac tune`` says on the Macs that people have: as it was when a person last read it."""

import os
from pathlib import Path

import pytest

from r1mac import cli
from r1mac.machine import detect
from r1mac.units import GIB
from tests.goldens import assert_golden
from tests.macs import Mac

# Golden file to the recorded Mac and what somebody would tune for there.
RECORDED = {
    "m1-8gb": ("m1-mini-8gb-macos26.3.2", ["8b", "32b"]),
    "m4-16gb": ("m4-16gb-macos26", ["14b", "14b --context 65536"]),
    "m3-max-36gb": ("m3-max-36gb-macos26", ["32b", "32b --reserve 6gb"]),
    "m4-max-36gb-macos15": ("m4-max-36gb-macos15.7.7", ["32b"]),
    "m4-pro-48gb": ("m4-pro-48gb-macos26", ["32b --context 98304", "70b --bits 3"]),
    "m5-pro-64gb": ("m5-pro-64gb-macos26.6.1", ["8b", "70b", "70b --context 65536", "671b"]),
    "m3-max-96gb": ("m3-max-96gb-macos26", ["70b --context 131072"]),
    "m4-max-128gb-macos15": ("m4-max-128gb-macos15", ["70b --bits 8 --context 131072"]),
    "m4-max-128gb": ("m4-max-128gb-macos26.2", ["70b --bits 8 --context 131072", "671b --bits 2"]),
    "m3-ultra-512gb": ("m3-ultra-512gb-macos26", ["671b", "671b --context 163840", "671b --bits 6"]),
    "m6-32gb-macos27": ("m6-mini-32gb-macos27.0.1", ["14b", "32b"]),
    "m5-max-64gb-override": ("m5-max-64gb-override", ["70b"]),
    "m5-max-128gb-override": ("m5-max-128gb-override", ["70b"]),
    "unnamed-48gb-override": ("unnamed-48gb-override", ["8b", "32b --context 98304"]),
    "intel": ("intel-macbook-pro", ["8b"]),
}
# Macs of which no text was recorded, from the keys that they would have.
MADE = {
    "m5-ultra-256gb": (
        {"machdep.cpu.brand_string": "Apple M5 Ultra", "hw.memsize": 256 * GIB, "kern.osproductversion": "26.6.2"},
        ["671b --bits 2", "671b"],
    ),
    "virtual-m1-7gb": (
        {
            "machdep.cpu.brand_string": "Apple M1 (Virtual)", "hw.model": "VirtualMac2,1", "hw.memsize": 7 * GIB,
            "kern.osproductversion": "15.5",
        },
        ["1.5b", "7b"],
    ),
    "limit-above-memory": (
        {
            "machdep.cpu.brand_string": "Apple M4 Max", "hw.memsize": 64 * GIB, "kern.osproductversion": "26.2",
            "iogpu.wired_limit_mb": 1_000_000,
        },
        ["70b", "8b", "671b"],
    ),
    "rosetta": (
        {
            "machdep.cpu.brand_string": "VirtualApple @ 2.50GHz", "hw.memsize": 64 * GIB,
            "kern.osproductversion": "26.2", "sysctl.proc_translated": 1,
        },
        ["8b"],
    ),
    "macos13": (
        {
            "machdep.cpu.brand_string": "Apple M2 Max", "hw.memsize": 64 * GIB, "kern.osproductversion": "13.6",
            "iogpu.wired_limit_mb": None,
        },
        ["70b"],
    ),
}  # fmt: skip


def said(capsys, *arguments: str) -> str:
    """Return a command, what it printed and its exit code, as a terminal shows them."""
    with pytest.raises(SystemExit) as end:
        cli.main(["tune", *arguments])
    out, err = capsys.readouterr()
    return f"$ r1mac {' '.join(['tune', *arguments])}\n{out}{err}[{end.value.code}]\n"


@pytest.mark.parametrize("name", [*RECORDED, *MADE])
def test_what_tune_says(name, tmp_path, monkeypatch, capsys):
    """Without a model, for models that fit, need more, or cannot fit: on every kind of Mac, and nothing is changed."""
    if name in RECORDED:
        recorded, models = RECORDED[name]
        mac = Mac(tmp_path / "mac", recorded)
    else:
        sysctl, models = MADE[name]
        mac = Mac(tmp_path / "mac", sysctl=sysctl)
    before = mac.snapshot()
    monkeypatch.setattr(detect, "detect", lambda *_: mac.machine())
    monkeypatch.setenv("NO_COLOR", "1")
    text = "\n".join(said(capsys, *words.split()) for words in ["", *models])

    assert mac.snapshot() == before
    assert not any(call.startswith(("sudo", "launchctl")) for call in mac.calls)
    assert not Path(os.environ["R1MAC_HOME"]).exists()
    assert_golden(f"tune/{name}.txt", text.replace(str(mac.folder), ""))
