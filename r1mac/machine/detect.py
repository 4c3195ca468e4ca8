"""Which kind of computer this is."""

import sys

from r1mac.machine.base import Machine


def detect(platform: str = sys.platform) -> Machine:
    """Return the computer that this process runs on."""
    if platform == "darwin":
        from r1mac.machine.darwin import DarwinMachine

        return DarwinMachine()
    from r1mac.machine.generic import GenericMachine

    return GenericMachine()
