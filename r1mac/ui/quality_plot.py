"""Models as points, gigabytes across and divergence up, as SVG."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

from r1mac.prepare.standings import Standing

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 56, 56
# A divergence of nothing has no place on a logarithmic axis.
_LEAST_NATS = 1e-6
_GIGABYTE = 10**9
_MOST_STEPS = 9


def draw(standings: Sequence[Standing], *, reference: str) -> str:
    """Return *standings*, at least one, as an SVG image; the divergence's axis is logarithmic.

    Args:
        standings: models that were compared with *reference* on the same text.
        reference: its name.
    """
    nats = [max(standing.kl_nats, _LEAST_NATS) for standing in standings]
    low, high = floor(log10(min(nats))), ceil(log10(max(nats)))
    high = max(high, low + 1)
    step = _step(max(standing.size_bytes for standing in standings) / _GIGABYTE)
    most = step * (floor(max(standing.size_bytes for standing in standings) / _GIGABYTE / step) + 1)

    def across(gigabytes: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * gigabytes / most, 1)

    def up(value: float) -> float:
        share = (log10(value) - low) / (high - low)
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share, 1)

    lines = []
    for exponent in range(low, high + 1):
        lines += _level(up(10.0**exponent), f"{10.0**exponent:g}")
    for number in range(round(most / step) + 1):
        lines.append(_text(across(number * step), _HEIGHT - _BOTTOM + 20, f"{number * step:g}", anchor="middle"))
    for standing, value in zip(standings, nats, strict=True):
        lines += _point(standing, across(standing.size_bytes / _GIGABYTE), up(value))
    return "\n".join([*_frame(reference), *lines, "</svg>", ""])


def _frame(reference: str) -> list[str]:
    middle, bottom = (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#555"/>',
        _text(_LEFT, 28, f"Divergence from {reference} (nats a token, lower is better)"),
        _text(middle, _HEIGHT - 14, "weights in GB", anchor="middle"),
    ]


def _level(height: float, label: str) -> list[str]:
    return [
        f'<path d="M{_LEFT} {height}H{_WIDTH - _RIGHT}" stroke="#ddd"/>',
        _text(_LEFT - 8, height + 4, label, anchor="end"),
    ]


def _point(standing: Standing, x: float, y: float) -> list[str]:
    size = f"{standing.size_bytes / _GIGABYTE:.3g} GB, {standing.kl_nats:.3g} nats"
    # A name is written to that side of its point where there is more room.
    is_right = x < (_LEFT + _WIDTH) / 2
    label = _text(x + (9 if is_right else -9), y + 4, standing.name, anchor="start" if is_right else "end")
    title = escape(f"{standing.name}: {size}")
    return [f'<circle cx="{x}" cy="{y}" r="5" fill="#2563eb"><title>{title}</title></circle>', label]


def _text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#222">{escape(words)}</text>'


def _step(most: float) -> float:
    """Return a round step that makes four to eight of *most*."""
    size: float = 10.0 ** floor(log10(max(most, 1e-9)))
    return next(size * part for part in (0.2, 0.5, 1.0, 2.0) if most / (size * part) < _MOST_STEPS)
