"""Carrying out a tuning, and undoing it: the record first, then the limit, then config.toml."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from r1mac import paths
from r1mac.catalog.models import ModelSpec, all_models
from r1mac.errors import R1MacError
from r1mac.machine.base import HardwareProfile, Machine
from r1mac.machine.wired_limit import LEAST_MIB, DaemonRefused, WiredLimit, WiredState
from r1mac.plan.recipe import recipe_bytes
from r1mac.plan.tune import Limits, Tuning, choose, limits_of
from r1mac.prepare.journal import Journal, load_journal, save_journal
from r1mac.prepare.preferences import extended, read_config, undone, with_values, write_config
from r1mac.prepare.wish import Wish, recipe_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was set before and after, as it was read back.

    Attributes:
        notes: what else the person should know.
    """

    before: WiredState
    after: WiredState
    notes: tuple[str, ...] = ()


def propose(
    wish: Wish, hardware: HardwareProfile, *, kv_bits: int | None = None, reserve_bytes: int | None = None
) -> Tuning:
    """Return what *wish* should get on this Mac.

    Args:
        wish: the model, and the context if one was asked for.
        hardware: this Mac.
        kv_bits: the width of the cache's values, if one was asked for.
        reserve_bytes: what macOS is to keep, if not the policy's own; never less than 4 GiB.
    """
    return choose(
        wish.arch,
        hardware,
        stored_bytes=wish.weights.stored_bytes,
        context_tokens=wish.context_tokens,
        kv_bits=kv_bits,
        reserve_bytes=reserve_bytes,
        scratch_factor=wish.scratch_factor,
        parallel=wish.parallel,
    )


def kept_settings(wish: Wish, tuning: Tuning) -> dict[str, int]:
    """Return what config.toml keeps of *tuning* for run."""
    bits = {} if wish.target.bits is None else {"bits": wish.target.bits}
    return bits | {
        "context_tokens": tuning.context_tokens,
        "kv_bits": tuning.kv_bits,
        "prefill_step_tokens": tuning.prefill_step_tokens,
    }


def largest_model(hardware: HardwareProfile, *, reserve_bytes: int | None = None) -> tuple[ModelSpec, Tuning] | None:
    """Return the largest model of the family, at its usual width, that this Mac could run, and its tuning."""
    members = (spec for spec in all_models() if spec.is_member)
    for spec in sorted(members, key=lambda spec: -spec.source_bytes):
        stored_bytes = recipe_bytes(spec.arch, recipe_at(spec, spec.default_bits))
        tuning = choose(spec.arch, hardware, stored_bytes=stored_bytes, reserve_bytes=reserve_bytes)
        if tuning.plan.fits:
            return spec, tuning
    return None


def apply(machine: Machine, tuning: Tuning, *, model: str, settings: Mapping[str, int], persist: bool) -> Outcome:
    """Set the limit that *tuning* proposes, and keep *settings* for *model* in config.toml.

    Args:
        machine: this Mac.
        tuning: what was decided.
        model: the name of the model's table.
        settings: what run is to use for it.
        persist: whether a daemon is to set the limit at each start too.

    Raises:
        NeedsAdmin: sudo did not do it; nothing is changed.
        UnsupportedMachine: macOS did not take the limit, or (DaemonRefused) not the daemon.
        BadSettings: config.toml cannot be added to; nothing is changed.
        NotWritable: the record or config.toml cannot be written.
    """
    wired = machine.wired_limit()
    before = wired.read()
    limit_mib = before.limit_mib if tuning.wired_limit_mib is None else tuning.wired_limit_mib
    kept_mib = limit_mib if persist and limit_mib else None
    config_file, text = paths.config_file(), read_config(paths.config_file())
    new_text = with_values(text, model, settings)
    old = load_journal(paths.tuning_file())
    journal = _record(machine, before, old)
    journal = replace(
        journal,
        daemon_changed=journal.daemon_changed or (persist and (limit_mib, before.daemon_mib) != (0, None)),
        kept_mib=journal.kept_mib if kept_mib is None else (*journal.kept_mib, kept_mib),
        config=extended(journal.config, text, new_text, model, settings),
    )
    save_journal(paths.tuning_file(), journal)
    refusal = None
    try:
        _set(wired, before, limit_mib, persist=persist)
    except DaemonRefused as error:
        refusal = error  # the limit is set
    except R1MacError:
        if wired.read() == before:
            save_journal(paths.tuning_file(), old)
        raise
    write_config(config_file, new_text)
    if refusal is not None:
        raise refusal
    return Outcome(before=before, after=wired.read(), notes=tuple(_notes_after(wired.read(), persist=persist)))


def _record(machine: Machine, now: WiredState, old: Journal | None) -> Journal:
    """Return what there was before tune's first change that still counts."""
    boot = machine.boot()
    if old is None:
        return Journal(boot=boot, limit_mib=now.limit_mib, daemon_mib=now.daemon_mib)
    return replace(old, boot=boot, limit_mib=old.former_limit_mib(now, boot))


def _set(wired: WiredLimit, before: WiredState, limit_mib: int, *, persist: bool) -> None:
    wanted_daemon_mib = limit_mib or None
    if persist and before.daemon_mib != wanted_daemon_mib:
        if wanted_daemon_mib is None:
            wired.uninstall()
        else:
            wired.install(wanted_daemon_mib)
            return
    if before.limit_mib != limit_mib:
        wired.set(limit_mib)


def _notes_after(after: WiredState, *, persist: bool) -> list[str]:
    notes = []
    if persist and not after.limit_mib:
        notes.append("there is nothing to set at each start: the limit is macOS's own")
    if after.daemon_mib not in {None, after.limit_mib}:
        notes.append(
            f"r1mac's daemon will still set {after.daemon_mib} MiB at the next start; --persist makes it the same"
        )
    notes += [f"{other.path} sets the limit too, to {other.value} MiB at each start" for other in after.others]
    return notes


def undo(machine: Machine) -> Outcome | None:
    """Put back what there was before tune's first change; None if there is no record of one.

    It can be run again after a crash at any moment.

    Raises:
        NeedsAdmin: sudo did not do it; the record stays.
        UnsupportedMachine: macOS did not take the former limit or daemon; the record stays.
        NotWritable: the record cannot be read or removed, or config.toml not be written.
    """
    journal = load_journal(paths.tuning_file())
    if journal is None:
        return None
    wired = machine.wired_limit()
    limits = limits_of(machine.profile())
    before = now = wired.read()
    boot = machine.boot()
    notes = []
    limit_mib = journal.former_limit_mib(now, boot)
    if journal.limit_mib and not journal.boot.is_same_as(boot):
        notes.append(f"the limit of {journal.limit_mib} MiB ended when this Mac started again, and is not put back")
    if limit_mib != now.limit_mib and not _can_be_set(limit_mib, limits):
        notes.append(f"the limit was {limit_mib} MiB before, which r1mac does not set: it is macOS's own now")
        limit_mib = 0
    if journal.daemon_changed:
        _put_daemon_back(wired, journal.daemon_mib, limits)
        now = wired.read()
    if now.limit_mib != limit_mib:
        wired.set(limit_mib)
    config_file = paths.config_file()
    write_config(config_file, undone(journal.config, read_config(config_file)))
    save_journal(paths.tuning_file(), None)
    return Outcome(before=before, after=wired.read(), notes=tuple(notes))


def _put_daemon_back(wired: WiredLimit, daemon_mib: int | None, limits: Limits) -> None:
    # Also where the daemon looks right: launchd may have been told half of it.
    if daemon_mib is None or not _can_be_set(daemon_mib, limits):
        wired.uninstall()
    else:
        wired.install(daemon_mib)


def _can_be_set(limit_mib: int, limits: Limits) -> bool:
    return limit_mib == 0 or LEAST_MIB <= limit_mib <= limits.bearable_mib
