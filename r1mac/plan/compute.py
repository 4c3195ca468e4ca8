"""In which type a model computes, which decides its speed on a CPU and its memory there."""

from enum import Enum

from r1mac.catalog.arch import ArchSpec
from r1mac.machine.base import HardwareProfile

# On MLX's CPU backend float16 and low-bit products use scalar code. SmolLM2-135M at 4 bits on two x86 cores:
# 0.3 tokens/s with float16 scales, 1.2 with bfloat16, 9.6 in float32, 12 dequantised to float32 (docs/lab.md).


class Compute(Enum):
    """What becomes of the weights when a model is loaded."""

    AS_STORED = "as stored"
    FLOAT32 = "float32 scales"
    DEQUANTIZED = "dequantised to float32"


def choose_compute(arch: ArchSpec, hardware: HardwareProfile) -> Compute:
    """Return how to compute: as stored on a GPU, on a CPU in float32, dequantised where half the memory holds it."""
    if hardware.system == "macos":
        return Compute.AS_STORED
    if 4 * arch.parameter_count <= hardware.wired_limit_bytes // 2:
        return Compute.DEQUANTIZED
    return Compute.FLOAT32


def loaded_weight_bytes(arch: ArchSpec, stored_bytes: int, compute: Compute) -> int:
    """Return what the weights take in memory once they are loaded."""
    if compute is Compute.DEQUANTIZED:
        return 4 * arch.parameter_count
    if compute is Compute.FLOAT32:
        # Codes keep their width; what is no code doubles: everything, or at most a bit a weight (scales and biases
        # of groups of 32). No quantised model stores as much as 12 bits a weight.
        if 8 * stored_bytes >= 12 * arch.parameter_count:
            return max(stored_bytes, 4 * arch.parameter_count)
        return stored_bytes + arch.parameter_count // 8 + _wide_bytes(arch)
    # Routers are computed with in float32, whatever they are stored in.
    return stored_bytes + sum(
        2 * count * tensor.size for count, tensor in arch.counted_tensors if tensor.role == "router"
    )


def _wide_bytes(arch: ArchSpec) -> int:
    """Return what the tensors that are never quantised take at 16 bits."""
    return sum(2 * count * tensor.size for count, tensor in arch.counted_tensors if tensor.role != "matrix")
