"""DeepSeek's latent attention, forwards and back: keys and values of all heads are made of one latent."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scripts.tiny.tape import Array, Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Sizes of an attention, by the fields of config.json."""

    count: int
    nope: int
    rope: int
    value: int
    theta: float
    factor: float
    original_tokens: int
    beta_fast: float
    beta_slow: float
    mscale_all_dim: float

    @property
    def scale(self) -> float:
        """What products are multiplied with: DeepSeek's, which grows with YaRN's factor."""
        mscale = 0.1 * self.mscale_all_dim * math.log(self.factor) + 1
        return mscale**2 / math.sqrt(self.nope + self.rope)


def wavelengths(heads: Heads) -> Array:
    """Return YaRN's wavelengths over 2π, one for each pair of rotary values (arXiv 2309.00071, as DeepSeek has it)."""

    def place(rotations: float) -> float:
        return heads.rope * math.log(heads.original_tokens / (rotations * 2 * math.pi)) / (2 * math.log(heads.theta))

    low = max(math.floor(place(heads.beta_fast)), 0)
    high = min(math.ceil(place(heads.beta_slow)), heads.rope - 1)
    plain = heads.theta ** (np.arange(0, heads.rope, 2) / heads.rope)
    ramp = np.clip((np.arange(heads.rope // 2) - low) / max(high - low, 0.001), 0, 1)
    return (1 / (ramp / (heads.factor * plain) + (1 - ramp) / plain)).astype(np.float32)


@lru_cache(maxsize=256)
def _turns(heads: Heads, tokens: int) -> tuple[Array, Array]:
    angles = np.arange(tokens, dtype=np.float32)[:, None] / wavelengths(heads)
    return np.cos(angles), np.sin(angles)


@lru_cache(maxsize=256)
def _future(tokens: int) -> Array:
    return np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    """Return *x* ``[..., tokens, rope]`` with its neighbouring pairs turned."""
    turned = np.empty_like(x)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = even * sin + odd * cos
    return turned


def attend(tape: Tape, queries: Value, keys_values: Value, rotary_key: Value, heads: Heads, rows: int) -> Value:
    """Return what each token gathers from those before it, ``[tokens, count * value]``.

    Args:
        tape: where it is noted.
        queries: ``[tokens, count * (nope + rope)]``, sequence after sequence, all of one length.
        keys_values: ``[tokens, count * (nope + value)]``.
        rotary_key: ``[tokens, rope]``, one for all heads.
        heads: sizes.
        rows: how many sequences there are.
    """
    count, nope, rope = heads.count, heads.nope, heads.rope
    length = queries.data.shape[0] // rows
    cos, sin = _turns(heads, length)

    def by_head(x: Array) -> Array:
        return np.ascontiguousarray(x.reshape(rows, length, count, -1).transpose(0, 2, 1, 3))

    def by_token(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(rows * length, -1)

    q = by_head(queries.data)
    q[..., nope:] = _turn(q[..., nope:], cos, sin)
    both = by_head(keys_values.data)
    v = np.ascontiguousarray(both[..., nope:])
    k = np.empty((rows, count, length, nope + rope), q.dtype)
    k[..., :nope] = both[..., :nope]
    k[..., nope:] = _turn(rotary_key.data.reshape(rows, 1, length, rope), cos, sin)
    shares = q @ k.swapaxes(-1, -2)
    shares *= heads.scale
    shares += _future(length)
    shares -= shares.max(axis=-1, keepdims=True)
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=-1, keepdims=True)

    def back(grad: Array) -> None:
        out = by_head(grad)
        to_shares = out @ v.swapaxes(-1, -2)
        to_shares -= np.einsum("bhqk,bhqk->bhq", to_shares, shares)[..., None]
        to_shares *= shares
        to_shares *= heads.scale
        to_q = to_shares @ k
        to_k = to_shares.swapaxes(-1, -2) @ q
        to_q[..., nope:] = _turn(to_q[..., nope:], cos, -sin)
        queries.add_grad(by_token(to_q))
        rotary = _turn(to_k[..., nope:].sum(axis=1), cos, -sin)
        rotary_key.add_grad(rotary.reshape(rows * length, rope))
        to_v = shares.swapaxes(-1, -2) @ out
        keys_values.add_grad(by_token(np.concatenate([to_k[..., :nope], to_v], axis=-1)))

    return tape.note(Value(by_token(shares @ v)), back)
