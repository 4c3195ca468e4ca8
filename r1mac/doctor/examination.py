"""One examination of this computer: what the checks may ask, what each says, and that none stops the others."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from r1mac.engine.device import Device, ask_device
from r1mac.errors import BadSettings, UnsupportedMachine
from r1mac.hub.store import Store, StoredModel
from r1mac.machine.base import HardwareProfile, Machine
from r1mac.machine.occupancy import Holder, holders
from r1mac.machine.readings import Readings, StartupSetting
from r1mac.prepare.unfinished import Unfinished, unfinished
from r1mac.settings import Settings

logger = logging.getLogger(__name__)

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check says.

    Attributes:
        name: what was looked at, for a person.
        subject: which one of several, such as a model's name; None where there is one only.
        status: «warn» is slow or risky, «fail» does not work or endangers the computer.
        found: what there is, with its numbers.
        why: what becomes of it; None where all is well.
        fix: what would help, a command where there is one; None where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    why: str | None = None
    fix: str | None = None
    subject: str | None = None

    @property
    def title(self) -> str:
        """Name and subject."""
        return f"{self.name} {self.subject}" if self.subject else self.name


class Examination:
    """What the checks may ask, each thing asked of the computer once.

    Args:
        machine: the computer.
        settings: what the user prefers; the defaults where config.toml is wrong.
        settings_error: what is wrong with config.toml or a variable.
        device: asks MLX for its device.
        now_s: seconds since 1970.
    """

    def __init__(
        self,
        machine: Machine,
        settings: Settings,
        *,
        settings_error: BadSettings | None = None,
        device: Callable[[], Device | str] | None = None,
        now_s: float | None = None,
    ) -> None:
        self.machine = machine
        self.settings = settings
        self.settings_error = settings_error
        self.now_s = time.time() if now_s is None else now_s
        self._ask_device = device or ask_device

    @cached_property
    def profile_or_refusal(self) -> HardwareProfile | UnsupportedMachine:
        """The facts of this computer, or why MLX cannot run on it."""
        try:
            return self.machine.profile()
        except UnsupportedMachine as refusal:
            return refusal

    @property
    def hardware(self) -> HardwareProfile | None:
        """The facts of this computer; None where MLX cannot run on it."""
        known = self.profile_or_refusal
        return known if isinstance(known, HardwareProfile) else None

    @property
    def mac(self) -> HardwareProfile | None:
        """The facts of this computer if it is a Mac that MLX can run on."""
        return self.hardware if self.hardware is not None and self.hardware.system == "macos" else None

    @cached_property
    def readings(self) -> Readings:
        """The state of this computer."""
        return self.machine.readings()

    @cached_property
    def device(self) -> Device | str:
        """MLX's device, or why it does not tell."""
        return self._ask_device()

    @cached_property
    def startup_settings(self) -> tuple[StartupSetting, ...]:
        """What would set the GPU's memory when this computer starts."""
        return self.machine.startup_settings()

    @cached_property
    def holders(self) -> tuple[Holder, ...]:
        """The r1mac processes that hold a model now."""
        return holders()

    @cached_property
    def unfinished(self) -> tuple[Unfinished, ...]:
        """The runs that did not end in order, the latest first."""
        return unfinished(self.machine, with_told=True)

    @cached_property
    def store(self) -> Store:
        """The model store."""
        return Store(self.settings.models_dir)

    @cached_property
    def models(self) -> tuple[StoredModel, ...]:
        """The models of the store with all of their files."""
        return tuple(model for model in self.store.list() if not model.missing_files())


@dataclass(frozen=True, slots=True)
class Check:
    """A part of an examination. What it says may be nothing, where it does not apply to this computer."""

    name: str
    run: Callable[[Examination], Iterable[CheckResult]]


@dataclass(slots=True)
class Report:
    """What an examination found."""

    results: list[CheckResult] = field(default_factory=list)

    def named(self, status: Status) -> list[str]:
        """Return what has this status, each once."""
        return list(dict.fromkeys(result.title for result in self.results if result.status == status))


def examine(examination: Examination, checks: Iterable[Check]) -> Report:
    """Run *checks* one after the other. One that breaks is a warning of its own, and the next goes on."""
    report = Report()
    for check in checks:
        try:
            report.results += check.run(examination)
        except Exception as error:  # a doctor that falls ill helps nobody
            logger.debug("the check of %s broke", check.name, exc_info=True)
            report.results.append(
                CheckResult(
                    name=check.name,
                    status="warn",
                    found=f"could not be checked: {type(error).__name__}: {error}",
                    why="nothing is known of it; r1mac itself may run all the same",
                    fix="`r1mac -v doctor` says more; please report it if it stays",
                )
            )
    return report
