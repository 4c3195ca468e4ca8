"""r1mac on a Mac of ``tests/macs.py``: python tests/mac_main.py FOLDER ARGUMENTS."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run r1mac's command line with the machine in a folder instead of this computer."""
    folder = Path(sys.argv[1])
    # Who dies when a test cuts the power.
    if os.getpgid(0) == os.getpid():
        (folder / "state" / "group").write_text(str(os.getpid()))

    from r1mac.cli import main as r1mac
    from r1mac.machine import detect
    from tests.macs import machine_in

    machine = machine_in(folder)
    detect.detect = lambda *_: machine
    if "doctor" in sys.argv:
        _give_it_metal()

    r1mac(sys.argv[2:])


def _give_it_metal() -> None:
    """Let MLX say what it says on a Mac; on this computer it would find no GPU."""
    from r1mac.doctor import examination
    from r1mac.engine.device import Device

    examination.ask_device = lambda: Device(name="Apple GPU", on_gpu=True)


if __name__ == "__main__":
    main()
