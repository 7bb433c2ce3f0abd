"""Numbers -> inline SVG: learning curves and the reliability of probabilities."""

from collections.abc import Sequence
from html import escape
from typing import Any

from trainer.evaluation.calibration import BINS, Bin, Calibration

_WIDTH, _HEIGHT, _MARGIN = 360, 200, 36
_NO_CURVES = frozenset({"stage", "epoch", "seconds", "ranks", "reverted", "kept"})


def learning_curves(history: Sequence[dict[str, Any]]) -> str:
    """Draw one chart for each figure that the epochs of a run recorded.

    Args:
        history: one entry per epoch, as the manifest keeps it.
    """
    names = {
        name: None
        for row in history
        for name, value in row.items()
        if isinstance(value, int | float) and name not in _NO_CURVES
    }
    return "\n".join(_curve(name, history) for name in names)


def reliability(calibration: Calibration) -> str:
    """Draw accuracy over confidence (a reliability diagram)."""
    side = _HEIGHT - 2 * _MARGIN
    bars = "".join(
        _bar(_MARGIN + index * side / BINS, side / BINS, each.accuracy, _bar_title(each))
        for index, each in enumerate(calibration.bins)
        if each
    )
    corner, top = _MARGIN + side, _MARGIN
    diagonal = f'<path class="ideal" d="M{_MARGIN} {_HEIGHT - _MARGIN}L{corner} {top}"/>'
    labels = (
        _text(_MARGIN, _HEIGHT - 18, "0")
        + _text(corner - 6, _HEIGHT - 18, "1")
        + _text(_MARGIN, _HEIGHT - 4, "confidence")
        + _text(8, _HEIGHT - _MARGIN, "0")
        + _text(8, top + 8, "1")
        + _text(_MARGIN, top - 10, "accuracy")
    )
    return _svg("reliability", bars + diagonal + labels, width=_HEIGHT)


def risk_and_coverage(points: Sequence[tuple[float, float]]) -> str:
    """Draw the share of wrong captions over the share that is told, both from 0 to 1."""
    side = _HEIGHT - 2 * _MARGIN
    every = max(1, len(points) // side)
    places = [
        (_MARGIN + told * side, _HEIGHT - _MARGIN - wrong * side)
        for told, wrong in (*points[::every], points[-1])
    ]
    line = '<path class="line" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + '"/>'
    labels = (
        _text(_MARGIN, _HEIGHT - 18, "0")
        + _text(_MARGIN + side - 6, _HEIGHT - 18, "1")
        + _text(_MARGIN, _HEIGHT - 4, "coverage")
        + _text(8, _HEIGHT - _MARGIN, "0")
        + _text(8, _MARGIN + 8, "1")
        + _text(_MARGIN, _MARGIN - 10, "share wrong")
    )
    return _svg("risk and coverage", line + labels, width=_HEIGHT)


def _bar_title(each: Bin) -> str:
    return f"{each.words} words of confidence {each.confidence:.2f}: accuracy {each.accuracy:.2f}"


def _bar(x: float, width: float, share: float, title: str) -> str:
    height = share * (_HEIGHT - 2 * _MARGIN)
    y = _HEIGHT - _MARGIN - height
    return (
        f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" '
        f'height="{height:.1f}"><title>{escape(title)}</title></rect>'
    )


def _curve(name: str, history: Sequence[dict[str, Any]]) -> str:
    points = [(epoch, row[name]) for epoch, row in enumerate(history, start=1) if name in row]
    values = [value for _, value in points]
    low, high = min(values), max(values)
    places = [(_x(epoch, len(history)), _y(value, low, high)) for epoch, value in points]
    line = '<path class="line" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + '"/>'
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
        f"<title>epoch {epoch}: {value:g}</title></circle>"
        for (x, y), (epoch, value) in zip(places, points, strict=True)
    )
    labels = (
        _text(_MARGIN, 16, name)
        + _text(2, _y(high, low, high) + 4, f"{high:.3g}")
        + (_text(2, _y(low, low, high) + 4, f"{low:.3g}") if low < high else "")
        + _text(_MARGIN, _HEIGHT - 8, f"epoch 1 to {len(history)}")
    )
    return _svg(name, _stage_lines(history) + line + dots + labels, width=_WIDTH)


def _stage_lines(history: Sequence[dict[str, Any]]) -> str:
    """Draw a line before the first epoch of each later stage."""
    starts = [
        index
        for index in range(1, len(history))
        if history[index].get("stage") != history[index - 1].get("stage")
    ]
    between = [_x(index + 0.5, len(history)) for index in starts]
    return "".join(
        f'<path class="stage" d="M{x:.1f} {_MARGIN - 12}V{_HEIGHT - _MARGIN + 6}"/>'
        for x in between
    )


def _x(epoch: float, epochs: int) -> float:
    return _MARGIN + 8 + (epoch - 1) / max(1, epochs - 1) * (_WIDTH - 2 * _MARGIN - 8)


def _y(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _svg(name: str, inside: str, *, width: int) -> str:
    return (
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {width} {_HEIGHT}" '
        f'width="{width}" height="{_HEIGHT}">{inside}</svg>'
    )
