"""Applying and undoing on a Mac that is a few numbers, whose power may go at any moment."""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mac import paths
from r1mac.catalog.models import find
from r1mac.errors import BadSettings, NeedsAdmin, NotWritable
from r1mac.machine.fake import M5_PRO_64, FakeMachine
from r1mac.machine.readings import Boot, StartupSetting
from r1mac.machine.wired_limit import DaemonRefused, WiredState
from r1mac.plan.tune import Tuning, choose
from r1mac.prepare import tuning as tuning_module
from r1mac.prepare.journal import load_journal

KEPT = {"bits": 4, "context_tokens": 32768, "kv_bits": 16, "prefill_step_tokens": 2048}
PLAN = choose(find("8b").arch, M5_PRO_64, stored_bytes=5 * 10**9).plan
BEARABLE_MIB = 60 * 1024


class PowerCut(BaseException):
    """The Mac lost its power; nothing catches that."""


@dataclass
class Power:
    """Counts the steps of a program and ends it before one of them."""

    steps_left: int | None = None

    def step(self) -> None:
        if self.steps_left is not None:
            if self.steps_left == 0:
                raise PowerCut
            self.steps_left -= 1


@dataclass
class SimpleMac(FakeMachine):
    """A Mac that is its limit, its daemon and how often it was started; also its own WiredLimit."""

    power: Power = field(default_factory=Power)
    limit_mib: int = 0
    daemon_mib: int | None = None
    loaded: bool = False
    other_mib: int | None = None
    start: int = 1
    refusal: Exception | None = None

    def profile(self):
        return M5_PRO_64

    def boot(self):
        return Boot(session=f"start-{self.start}")

    def wired_limit(self):
        return self

    def read(self) -> WiredState:
        other = StartupSetting(path=Path("/other.plist"), key="iogpu.wired_limit_mb", value=self.other_mib or 0)
        others = (other,) if self.other_mib is not None else ()
        return WiredState(limit_mib=self.limit_mib, daemon_mib=self.daemon_mib, others=others)

    def set(self, mib: int) -> None:
        self._admit()
        assert 0 <= mib <= BEARABLE_MIB
        self.power.step()
        self.limit_mib = mib
        self.power.step()

    def install(self, mib: int) -> None:
        self.set(mib)
        self.loaded = False
        self.power.step()
        self.daemon_mib = mib
        self.power.step()
        self.loaded = True
        self.power.step()

    def uninstall(self) -> None:
        self._admit()
        self.power.step()
        self.loaded = False
        self.power.step()
        self.daemon_mib = None
        self.power.step()

    def restart(self) -> None:
        self.start += 1
        self.limit_mib = self.daemon_mib or self.other_mib or 0
        self.loaded = self.daemon_mib is not None

    def _admit(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    @property
    def state(self):
        return self.limit_mib, self.daemon_mib, self.loaded


def tuning_to(mib: int | None) -> Tuning:
    return Tuning(wired_limit_mib=mib, plan=PLAN, reasons=())


def apply(machine, mib: int | None, *, persist: bool = False, model: str = "r1-distill-70b"):
    return tuning_module.apply(machine, tuning_to(mib), model=model, settings=KEPT, persist=persist)


@contextlib.contextmanager
def power_of(machine, steps: int | None):
    """Let the power go after so many steps of the Mac or of the file system; a restart follows it or not."""
    fsync = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (machine.power.step(), fsync(descriptor)))
        machine.power.steps_left = steps
        with contextlib.suppress(PowerCut):
            yield
        machine.power.steps_left = None


def config_text() -> str | None:
    path = paths.config_file()
    return path.read_text() if path.exists() else None


def leftovers() -> list[str]:
    home = paths.config_file().parent
    return [path.name for path in home.iterdir() if path.name != "config.toml"] if home.is_dir() else []


# One step after the other -------------------------------------------------------------------------


def test_apply_sets_the_limit_and_undo_takes_it_back():
    machine = SimpleMac()
    outcome = apply(machine, 54272)

    assert machine.state == (54272, None, False)
    assert (outcome.before.limit_mib, outcome.after.limit_mib) == (0, 54272)
    assert "context_tokens = 32768" in config_text()
    tuning_module.undo(machine)
    assert machine.state == (0, None, False)
    assert config_text() is None
    assert leftovers() == []


def test_persist_keeps_what_is_set_already():
    """Applied first and made lasting later: the daemon gets the limit that is there."""
    machine = SimpleMac()
    apply(machine, 54272)
    apply(machine, None, persist=True)

    assert machine.state == (54272, 54272, True)
    tuning_module.undo(machine)
    assert machine.state == (0, None, False)


def test_persist_of_macos_own_limit_removes_a_daemon_of_ours():
    """A daemon that sets what this Mac does not need any more goes, and comes back with undo."""
    machine = SimpleMac(limit_mib=20480, daemon_mib=20480, loaded=True)
    apply(machine, 0, persist=True)

    assert machine.state == (0, None, False)
    tuning_module.undo(machine)
    assert machine.state == (20480, 20480, True)


def test_applied_twice_the_first_state_is_what_undo_restores():
    machine = SimpleMac(limit_mib=50000)
    apply(machine, 54272)
    apply(machine, 57344, persist=True, model="r1-671b")
    tuning_module.undo(machine)

    assert machine.state == (50000, None, False)


def test_a_limit_of_the_former_start_is_not_brought_back():
    """What was set by hand before ended with that start, so undo after another one does not set it again."""
    machine = SimpleMac(limit_mib=50000)
    apply(machine, 54272, persist=True)
    machine.restart()
    outcome = tuning_module.undo(machine)

    assert machine.state == (0, None, False)
    assert any("50000 MiB ended" in note for note in outcome.notes)


def test_a_limit_that_somebody_set_in_another_start_stays():
    """Nothing of tune is left after a restart without a daemon, so what is set then is not tune's."""
    machine = SimpleMac()
    apply(machine, 54272)
    machine.restart()
    machine.limit_mib = 51200
    tuning_module.undo(machine)

    assert machine.state == (51200, None, False)


def test_another_programs_daemon_is_what_remains():
    """After a restart in which r1mac's daemon won, undo gives the limit that the other would have set."""
    machine = SimpleMac(other_mib=58000)
    apply(machine, 54272, persist=True)
    machine.restart()
    tuning_module.undo(machine)

    assert machine.state == (58000, None, False)


@pytest.mark.parametrize("former_mib", [BEARABLE_MIB + 1, 100])
def test_a_former_limit_that_is_dangerous_becomes_macos_own(former_mib):
    """r1mac sets no limit that may freeze the Mac, not even to undo; it says so."""
    machine = SimpleMac(limit_mib=former_mib)
    apply(machine, 54272)
    outcome = tuning_module.undo(machine)

    assert machine.limit_mib == 0
    assert any(str(former_mib) in note for note in outcome.notes)


def test_without_a_record_nothing_is_undone():
    machine = SimpleMac(limit_mib=54272, daemon_mib=54272, loaded=True)

    assert tuning_module.undo(machine) is None
    assert machine.state == (54272, 54272, True)


# When it fails ------------------------------------------------------------------------------------


def test_what_sudo_refused_leaves_no_trace():
    """No limit, no record and no line in config.toml; an older record is as it was."""
    machine = SimpleMac(refusal=NeedsAdmin("no"))
    for persist in (False, True):
        with pytest.raises(NeedsAdmin):
            apply(machine, 54272, persist=persist)
    assert machine.state == (0, None, False)
    assert config_text() is None
    assert leftovers() == []

    machine.refusal = None
    apply(machine, 54272)
    record = paths.tuning_file().read_text()
    machine.refusal = NeedsAdmin("no")
    with pytest.raises(NeedsAdmin):
        apply(machine, 57344)
    assert paths.tuning_file().read_text() == record


def test_a_refused_daemon_leaves_the_limit_and_a_record(monkeypatch):
    """launchd said no: the limit is set for this start, the settings are kept, and undo works."""
    machine = SimpleMac()
    monkeypatch.setattr(SimpleMac, "install", lambda self, mib: (self.set(mib), _refuse())[0])
    with pytest.raises(DaemonRefused):
        apply(machine, 54272, persist=True)

    assert machine.state == (54272, None, False)
    assert "context_tokens" in config_text()
    tuning_module.undo(machine)
    assert machine.state == (0, None, False)
    assert config_text() is None


def _refuse():
    raise DaemonRefused("launchd refused")


def test_a_config_that_cannot_be_extended_stops_it_before_anything_is_set():
    path = paths.config_file()
    path.parent.mkdir(parents=True)
    path.write_text("models = { a = { bits = 3 } }\n")
    machine = SimpleMac()
    with pytest.raises(BadSettings):
        apply(machine, 54272)

    assert machine.state == (0, None, False)
    assert leftovers() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}', "nonsense"])
def test_a_record_that_cannot_be_read_stops_it(text):
    """Neither apply nor undo guesses what was there before."""
    path = paths.tuning_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    machine = SimpleMac(limit_mib=50000)
    for action in (lambda: apply(machine, 54272), lambda: tuning_module.undo(machine)):
        with pytest.raises(NotWritable, match="cannot be read"):
            action()

    assert machine.state == (50000, None, False)
    assert path.read_text() == text


# A power cut at any moment ------------------------------------------------------------------------

LIMITS = st.sampled_from([50000, 54272, 57344, 58000])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("apply"), st.none() | LIMITS, st.booleans(), st.sampled_from(["r1-distill-70b", "r1-671b"]),
            st.none() | st.integers(0, 14),
        ),
        st.just(("restart",)),
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(
    limit_mib=st.just(0) | LIMITS,
    daemon_mib=st.none() | LIMITS,
    other_mib=st.none() | LIMITS,
    config=st.sampled_from([None, "bits = 4\n", "# mine\n[models.r1-distill-70b]\nbits = 3 # three\n"]),
    actions=ACTIONS,
    cuts=st.lists(st.tuples(st.integers(0, 14), st.booleans()), max_size=3),
)
def test_undo_gives_back_exactly_what_would_be_without_tune(
    tmp_path_factory, limit_mib, daemon_mib, other_mib, config, actions, cuts
):
    """Any tunings, restarts and power cuts, also while undoing: in the end the Mac is as if tune had never run."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1MAC_HOME", str(home))
        if config is not None:
            paths.config_file().write_text(config)
        machine, untouched = (
            SimpleMac(limit_mib=limit_mib, daemon_mib=daemon_mib, loaded=daemon_mib is not None, other_mib=other_mib)
            for _ in range(2)
        )
        for action in actions:
            if action[0] == "restart":
                machine.restart()
                untouched.restart()
                continue
            _, mib, persist, model, steps = action
            with power_of(machine, steps):
                apply(machine, mib, persist=persist, model=model)
        for steps, restarts in cuts:
            with power_of(machine, steps):
                tuning_module.undo(machine)
            if restarts:
                machine.restart()
                untouched.restart()
        tuning_module.undo(machine)

        assert machine.state == untouched.state
        assert config_text() == config
        assert load_journal(paths.tuning_file()) is None
        assert leftovers() in ([], [".config.toml.new"], [".tuning.json.new"])
