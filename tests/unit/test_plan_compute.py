"""In which type a model computes, and what that costs."""

import pytest

from r1mac.catalog.arch import ArchSpec
from r1mac.catalog.models import all_models, find
from r1mac.machine.fake import LINUX_64, M1_8, M3_ULTRA_512, VIRTUAL_MAC_7, other
from r1mac.plan.compute import Compute, choose_compute, loaded_weight_bytes
from r1mac.plan.memory import Quantization, tensor_bytes, weight_bytes


def arch_of(name: str) -> ArchSpec:
    """Return the shape of a model of the catalog."""
    model = find(name)
    assert model is not None
    return model.arch


def float32_bytes(arch: ArchSpec, quantization: Quantization) -> int:
    """Return what the weights take once all but the codes are float32, tensor by tensor."""
    total = 0
    for tensor in arch.tensors:
        quantised = (
            tensor.role == "matrix" and quantization.bits < 16 and not tensor.shape[-1] % quantization.group_size
        )
        if quantised:
            codes = tensor.size * quantization.bits // 8
            total += codes + 2 * (tensor_bytes(tensor.shape, quantization) - codes)
        else:
            total += 4 * tensor.size
    return total


@pytest.mark.parametrize("hardware", [M1_8, M3_ULTRA_512, VIRTUAL_MAC_7], ids=lambda hardware: hardware.chip)
@pytest.mark.parametrize("name", ["demo", "70b", "671b"])
def test_a_mac_computes_as_stored(name, hardware):
    """A GPU computes in the type of the file, however small the model is."""
    assert choose_compute(arch_of(name), hardware) is Compute.AS_STORED


@pytest.mark.parametrize(
    ("name", "memory_gib", "compute"),
    [
        ("demo", 64, Compute.DEQUANTIZED),
        ("1.5b", 64, Compute.DEQUANTIZED),  # 7.1 GB of 30.9
        ("7b", 64, Compute.DEQUANTIZED),  # 30.5 GB of 30.9
        ("8b-llama", 64, Compute.FLOAT32),  # 32.1 GB of 30.9
        ("1.5b", 16, Compute.DEQUANTIZED),  # 7.1 GB of 7.5
        ("1.5b", 8, Compute.FLOAT32),  # 7.1 GB of 3.2
        ("70b", 512, Compute.FLOAT32),  # 282 GB of 247
    ],
)
def test_a_cpu_dequantises_what_half_its_memory_holds(name, memory_gib, compute):
    """On a CPU the weights become float32 where half the usable memory holds them, and else only their scales."""
    assert choose_compute(arch_of(name), other(memory_gib=memory_gib)) is compute


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.key)
def test_a_cpu_never_computes_as_stored(model):
    """Off a Mac every model computes in float32, one way or the other."""
    assert choose_compute(model.arch, LINUX_64) is not Compute.AS_STORED


def test_as_stored_takes_what_is_stored():
    """Weights that are not touched take in memory what they take on disk."""
    assert loaded_weight_bytes(arch_of("70b"), 39_688_355_840, Compute.AS_STORED) == 39_688_355_840


@pytest.mark.parametrize("stored_bytes", [1, 10**9])
def test_dequantised_takes_four_bytes_a_parameter(stored_bytes):
    """In float32 the weights take 4 bytes each, whatever they took on disk."""
    assert loaded_weight_bytes(arch_of("demo"), stored_bytes, Compute.DEQUANTIZED) == 4 * 134_515_008


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("name", ["1.5b", "8b-llama", "70b", "671b"])
def test_float32_scales_are_never_planned_too_small(name, bits, group_size):
    """With float32 scales the plan is at least what the tensors take, and at most a bit a weight more."""
    arch, quantization = arch_of(name), Quantization(bits=bits, group_size=group_size)
    exact = float32_bytes(arch, quantization)

    planned = loaded_weight_bytes(arch, weight_bytes(arch, quantization), Compute.FLOAT32)

    assert exact <= planned <= exact + arch.parameter_count // 8
