"""Does what a name means fit this machine? Nothing is fetched for a model that does not."""

from typing import Any

from r1mac.catalog.arch import SUPPORTED_MODEL_TYPES, ArchSpec, parse_arch
from r1mac.catalog.models import all_models
from r1mac.errors import BadCheckpoint
from r1mac.machine.base import HardwareProfile, Machine
from r1mac.plan.fit import MemoryPlan, fit, require_fit
from r1mac.plan.memory import Quantization, weight_bytes
from r1mac.prepare.target import Target, described, find_stored
from r1mac.settings import Settings


def plan_target(target: Target, settings: Settings, hardware: HardwareProfile) -> tuple[ArchSpec, MemoryPlan]:
    """Return the shape and the memory plan of what *target* means, from the nearest source of its shape.

    Raises:
        BadCheckpoint: its config.json is not that of a model that r1mac runs.
        R1MacError: it has to be asked for on the Hub, and that failed.
    """
    stored = find_stored(target, settings)
    local = stored.path if stored else target.folder
    if local is not None:
        from r1mac.formats import folder as model_folder

        arch = arch_of(model_folder.read_config(local), str(local))
        size = sum(path.stat().st_size for path in model_folder.weight_files(local))
    elif target.spec is not None:
        arch = target.spec.arch
        size = weight_bytes(arch, Quantization(bits=target.bits or 16, group_size=target.spec.default_group_size))
    else:
        arch, size = _remote_shape(target)
    context = settings.context_tokens
    if context is not None and "context_tokens" not in settings.said:
        # A preference for all models; only what was asked for this one may be refused.
        context = min(context, arch.max_context_tokens)
    return arch, fit(arch, hardware, stored_bytes=size, context_tokens=context)


def check_fit(target: Target, settings: Settings, machine: Machine) -> MemoryPlan:
    """Return the plan of *target* on *machine*.

    Raises:
        DoesNotFit: it cannot be run here; the hint names what can.
    """
    hardware = machine.profile()
    arch, plan = plan_target(target, settings, hardware)
    require(target, arch, plan, hardware)
    return plan


def require(target: Target, arch: ArchSpec, plan: MemoryPlan, hardware: HardwareProfile) -> None:
    """Raise if the *plan* of *target* cannot be run.

    Raises:
        DoesNotFit: with the numbers; the hint names what can be run here.
    """
    if not plan.fits or plan.context_tokens > arch.max_context_tokens:
        require_fit(plan, arch, title=described(target), alternative=_alternative(target, hardware))


def _remote_shape(target: Target) -> tuple[ArchSpec, int]:
    """Return the shape of a Hub repository's model, and the bytes of its weights once they are stored."""
    from r1mac.hub import download

    repo = target.repo or target.convert_from
    assert repo is not None
    config = download.fetch_config(repo)
    arch = arch_of(config, repo)
    if target.bits is not None and "quantization" not in config:
        return arch, weight_bytes(arch, Quantization(bits=target.bits))
    files = download.select_files(download.list_files(repo))
    return arch, sum(file.size_bytes for file in files if file.name.endswith(".safetensors"))


def arch_of(config: dict[str, Any], where: str) -> ArchSpec:
    """Return the shape in a config.json.

    Raises:
        BadCheckpoint: it is not that of a model that r1mac runs.
    """
    try:
        return parse_arch(config)
    except KeyError as error:
        raise BadCheckpoint(f"the config.json of {where} lacks {error.args[0]}", hint="fetch it again") from error
    except ValueError as error:
        raise BadCheckpoint(
            f"r1mac cannot run {where}: {error}", hint=f"it runs {', '.join(SUPPORTED_MODEL_TYPES)}"
        ) from error


def _alternative(target: Target, hardware: HardwareProfile) -> str | None:
    """Return a command for the largest member of the family that fits *hardware*, fewer bits of this one first."""
    spec = target.spec
    candidates = [(spec, bits) for bits in (4, 3) if bits < (target.bits or 16)] if spec is not None else []
    # By the weight of the originals: counting the parameters of every model would cost 30 ms.
    smaller = [other for other in all_models() if spec is None or other.source_bytes < spec.source_bytes]
    candidates += [(other, 4) for other in sorted(smaller, key=lambda other: -other.source_bytes)]
    for spec, bits in candidates:
        quantization = Quantization(bits=bits, group_size=spec.default_group_size)
        if fit(spec.arch, hardware, stored_bytes=weight_bytes(spec.arch, quantization)).fits:
            option = "" if bits == spec.default_bits else f" --bits {bits}"
            return f"this machine can run {spec.title}: `r1mac run {spec.alias}{option}`"
    return None
