"""What MLX computes on, and what of its memory it keeps."""

import contextlib
from collections.abc import Iterator

import mlx.core as mx


def on_cpu() -> bool:
    """Tell whether MLX computes on a CPU."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


@contextlib.contextmanager
def cache_limited(size_bytes: int) -> Iterator[None]:
    """Let MLX keep so much of what is freed: buffers are of every size here, and keeping all looks like a leak."""
    before = mx.set_cache_limit(size_bytes)
    try:
        yield
    finally:
        mx.set_cache_limit(before)
        mx.clear_cache()
