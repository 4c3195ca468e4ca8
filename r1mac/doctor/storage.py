"""Disk, settings and the models of the store."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from r1mac.catalog.models import find
from r1mac.convert.journal import RECORD_NAME as CONVERSION_RECORD_NAME
from r1mac.doctor.examination import CheckResult, Examination
from r1mac.hub.manifest import MANIFEST_NAME, load_manifest
from r1mac.hub.store import StoredModel
from r1mac.machine.readings import Disk
from r1mac.prepare.planning import judge
from r1mac.prepare.target import Target, resolve
from r1mac.settings import Settings
from r1mac.units import GB, format_memory, format_size

# macOS's own swap files and updates need room too.
_LITTLE_ROOM_BYTES = 20 * GB
_NO_ROOM_BYTES = 2 * GB
_ELSEWHERE = "put models on the computer's own disk: set models_dir in config.toml, or R1MAC_MODELS_DIR"


def check_disk(examination: Examination) -> Iterator[CheckResult]:
    """Say where the models are, how much room is left there, and whether that disk is fast enough."""
    folder = examination.settings.models_dir
    free_bytes = examination.machine.free_disk_bytes(folder)
    disk = examination.machine.disk(folder)
    found = f"{format_size(free_bytes)} free for {folder}{_described(disk)}"
    if free_bytes < _LITTLE_ROOM_BYTES:
        yield CheckResult(
            name="disk",
            status="fail" if free_bytes < _NO_ROOM_BYTES else "warn",
            found=found,
            why="a model needs 1 to 400 GB, and the system needs room for swap",
            fix="`r1mac list` shows the models and `r1mac rm MODEL` deletes one",
        )
        return
    if disk.kind in {"external", "network"}:
        slow = "a network" if disk.kind == "network" else "an external disk"
        yield CheckResult(
            name="disk",
            status="warn",
            found=found,
            why=f"a large model loads slowly from {slow}, and the GPU gives up on reads that take too long "
            "(kIOGPUCommandBufferCallbackErrorTimeout)",
            fix=_ELSEWHERE,
        )
        return
    yield CheckResult(name="disk", status="ok", found=found)


def _described(disk: Disk) -> str:
    words = [word for word in (disk.kind, disk.file_system, disk.connection) if word]
    return f" ({', '.join(words)})" if disk.kind else ""


def check_settings(examination: Examination) -> Iterator[CheckResult]:
    """Say whether config.toml and the variables are valid."""
    from r1mac import paths

    error = examination.settings_error
    if error is not None:
        yield CheckResult(
            name="settings",
            status="fail",
            found=error.problem,
            why="no command that needs a setting runs until it is corrected; the defaults were used here",
            fix=error.hint,
        )
        return
    path = paths.config_file()
    stored = {model.name for model in examination.models}
    tables = examination.settings.models
    unknown = [name for name in tables if find(name) is None and name not in stored and not Path(name).is_dir()]
    if unknown:
        yield CheckResult(
            name="settings",
            status="warn",
            found=f"{path} has a table for {unknown[0]!r}, which is no model of the catalog or of this disk",
            why="nothing reads it",
            fix="correct the name (`r1mac list` and `r1mac plan` show the models), or delete the table",
        )
        return
    yield CheckResult(name="settings", status="ok", found=f"{path} is valid" if path.is_file() else "the defaults")


def check_store(examination: Examination) -> Iterator[CheckResult]:
    """Name what is damaged or half made in the store."""
    store = examination.store
    whole = {model.name for model in examination.models}
    for model in store.list():
        if model.name not in whole:
            missing = model.missing_files()
            yield _damaged(model.name, f"{len(missing)} of its files are missing or short, such as {missing[0]}")
    for path in _manifests(store.root):
        if load_manifest(path) is None:
            yield _damaged(path.name, f"{path / MANIFEST_NAME} cannot be read")
    for leftover in store.leftovers():
        if leftover.kind == "partial":
            name = leftover.name.replace("--", "/")
            converted = (leftover.path / CONVERSION_RECORD_NAME).is_file()
            go_on = "go on with the command that began it" if converted else f"go on with `r1mac pull {name}`"
            yield CheckResult(
                name="model",
                subject=leftover.name,
                status="warn",
                found=f"unfinished, {format_size(leftover.size_bytes)} so far",
                why="it takes room and cannot be run",
                fix=f"{go_on}, or delete it with `r1mac rm {leftover.name}`",
            )
        else:
            yield CheckResult(
                name="model",
                subject=leftover.name,
                status="warn",
                found=f"half deleted, {format_size(leftover.size_bytes)} left in {leftover.path}",
                why="it takes room and is good for nothing",
                fix=f"rm -r {shlex.quote(str(leftover.path))}",
            )
    if not whole:
        yield CheckResult(name="models", status="ok", found=f"none in {store.root} yet")


def _manifests(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path.parent for path in sorted(root.glob(f"[!.]*/{MANIFEST_NAME}")))


def _damaged(name: str, found: str) -> CheckResult:
    return CheckResult(
        name="model",
        subject=name,
        status="fail",
        found=found,
        why="it cannot be run as it is",
        fix=f"fetch it again: r1mac rm {name}; r1mac pull {name.replace('--', '/')}",
    )


def check_models(examination: Examination) -> Iterator[CheckResult]:
    """Say whether each stored model fits this computer."""
    hardware = examination.hardware
    if hardware is None:
        return
    for model in examination.models:
        target = _target(model, examination.settings)
        judgement = judge(target, examination.settings, hardware)
        plan = judgement.plan
        needs = f"{format_memory(plan.total_bytes)} with {plan.context_tokens} tokens of context"
        if judgement.can_run:
            budget = format_memory(plan.budget_bytes)
            yield CheckResult(
                name="model", subject=model.name, status="ok", found=f"{needs}, of {budget} that it may use"
            )
            continue
        remedies = judgement.remedies()
        yield CheckResult(
            name="model",
            subject=model.name,
            status="warn",
            found=f"needs {needs}, and may use {format_memory(plan.budget_bytes)}",
            why="only the GPU's wired limit is in the way" if judgement.fits_when_tuned else "it does not fit here",
            fix=f"{remedies[0].command} ({remedies[0].effect})" if remedies else _unusable(model),
        )


def _target(model: StoredModel, settings: Settings) -> Target:
    """Return what a stored model is, with its catalog entry if it has one: then more can be advised."""
    match = re.fullmatch(r"(.+)-([0-9]{1,2})bit", model.name)
    if match and find(match[1]) is not None:
        target = resolve(match[1], replace(settings, bits=int(match[2]), firm=settings.firm | {"bits"}))
        if target.store_name == model.name:
            return target
    return Target(title=model.name, store_name=model.name)


def _unusable(model: StoredModel) -> str:
    return f"r1mac rm {model.name} (frees {format_size(model.size_bytes)})"
