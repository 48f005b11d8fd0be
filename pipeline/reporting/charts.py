"""Charts: where bars of histograms, lines and ticks lie, in percent of the drawing; templates draw them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 40
DOTS = 60  # points of a line that still are points


@dataclass(frozen=True, kw_only=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Part of a stack; series: its number."""

    x: float
    y: float
    width: float
    height: float
    series: int
    title: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """path: in SVG's syntax, y downwards. points: (x, y, title), none where they would touch."""

    path: str
    points: list[tuple[float, float, str]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """x, y: ticks. names: of the series, by number. marks: upright lines."""

    title: str
    note: str
    x: list[Tick]
    y: list[Tick]
    names: list[str]
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()
    marks: Sequence[Tick] = ()


def _step(span: float, count: int) -> float:
    """The 1, 2 or 5 times a power of ten that cuts a span into about `count` parts."""
    raw = max(span, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    return float(next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999))


def _ticks(low: float, high: float, count: int) -> list[float]:
    step = _step(high - low, count)
    return [i * step for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _percent(value: float) -> float:
    return round(100 * value, 2)


def _stacked(
    heights: np.ndarray, left: np.ndarray, width: float, title: Callable[[int, int], str]
) -> tuple[list[Bar], list[Tick]]:
    """Bars, and ticks from 0 to above them.

    Args:
      heights: [n, series].
      left: [n], where each stack begins, as a share of the chart's width; width: of each.
      title: of the bar of a stack and a series.
    """
    tops = np.cumsum(heights, axis=1)
    ticks = _ticks(0, tops.max(), 4)
    high = max(tops.max() * 1.04, ticks[-1])
    bars = [
        Bar(
            x=_percent(left[n]), width=_percent(width), y=_percent(1 - tops[n, series] / high),
            height=_percent(heights[n, series] / high), series=series, title=title(n, series),
        )
        for n, series in np.argwhere(heights).tolist()
    ]  # fmt: skip
    return bars, [Tick(at=_percent(v / high), text=_number(v)) for v in ticks]


def histogram(title: str, note: str, values: dict[str, np.ndarray], marks: dict[str, float]) -> Chart:
    """Counts of values by name, stacked. marks: text to where an upright line stands."""
    everything = np.concatenate([*values.values(), np.array(list(marks.values()))])
    low, high = float(everything.min()), float(everything.max())
    step = _step(max(high - low, 0.1), BINS)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    edges = np.arange(first, last + 1) * step
    span = edges[-1] - edges[0]
    counts, names = np.stack([np.histogram(v, edges)[0] for v in values.values()], axis=1), list(values)
    bars, y = _stacked(
        counts, np.arange(len(counts)) / len(counts), 1 / len(counts),
        lambda b, series: f"{edges[b]:.4g} to {edges[b + 1]:.4g}: {counts[b, series]:,} {names[series]}",
    )  # fmt: skip
    return Chart(
        title=title, note=note, names=names, bars=bars, y=y,
        x=[Tick(at=_percent((v - edges[0]) / span), text=_number(v)) for v in _ticks(edges[0], edges[-1], 5)],
        marks=[Tick(at=_percent((v - edges[0]) / span), text=text) for text, v in marks.items()],
    )  # fmt: skip


def _rounds(numbers: list[int]) -> tuple[list[Tick], float]:
    """Ticks for rounds that lie at equal distances, half a step from the sides; and the step."""
    step = 1 / (numbers[-1] - numbers[0] + 1)
    shown = [n for n in numbers if n % max(1, math.ceil(_step(numbers[-1] - numbers[0], 8))) == 0] or numbers[:1]
    return [Tick(at=_percent((n - numbers[0] + 0.5) * step), text=str(n)) for n in shown], step


def lines(title: str, note: str, series: dict[str, dict[int, float]], form: str) -> Chart | None:
    """Values by round, a line a series. form: how a value is written. None if there is none."""
    series = {name: values for name, values in series.items() if values}
    if not series:
        return None
    numbers = sorted({n for values in series.values() for n in values})
    every = [v for values in series.values() for v in values.values()]
    step = _step(max(max(every) - min(every), 0.02), 4)
    first, last = math.floor(min(every) / step + 1e-6), math.ceil(max(every) / step - 1e-6)
    ticks = [i * step for i in range(first, max(last, first + 1) + 1)]
    low, high = ticks[0], ticks[-1]
    x, width = _rounds(numbers)
    drawn = []
    for values in series.values():
        points = [
            (_percent((n - numbers[0] + 0.5) * width), _percent((high - v) / (high - low)), f"round {n}: {v:{form}}")
            for n, v in sorted(values.items())
        ]
        path = "M" + "L".join(f"{px} {py}" for px, py, _ in points)
        drawn.append(Line(path=path, points=points if len(numbers) <= DOTS else []))
    y = [Tick(at=_percent((v - low) / (high - low)), text=f"{v:{form}}") for v in ticks]
    return Chart(title=title, note=note, names=list(series), x=x, y=y, lines=drawn)


def columns(title: str, note: str, series: dict[str, dict[int, float]], unit: str) -> Chart | None:
    """Values by round, stacked. None if there is none."""
    names = [name for name, values in series.items() if any(values.values())]
    if not names:
        return None
    numbers = sorted({n for name in names for n in series[name]})
    heights = np.array([[series[name].get(n, 0.0) for name in names] for n in numbers])
    x, width = _rounds(numbers)
    bars, y = _stacked(
        heights, (np.array(numbers) - numbers[0] + 0.18) * width, 0.64 * width,
        lambda n, of: f"round {numbers[n]}: {_number(heights[n, of])}{unit} {names[of]}",
    )  # fmt: skip
    return Chart(title=title, note=note, names=names, x=x, y=y, bars=bars)
