"""Where the bars, lines and ticks of the report's charts lie, in percent of the drawing; templates draw them."""

import math
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
    series: int


@dataclass(frozen=True, kw_only=True)
class Chart:
    """x, y: ticks. names: of the series, by number. marks: upright lines. about: what a screen reader says."""

    x: list[Tick]
    y: list[Tick]
    names: list[str]
    about: str
    bars: list[Bar]
    lines: list[Line]
    marks: list[Tick]


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


def _upright(top: float) -> tuple[list[Tick], float]:
    """Ticks from 0, and what 100 % is."""
    values = _ticks(0, max(top, 1e-9), 4)
    high = max(top * 1.04, values[-1])
    return [Tick(at=_percent(v / high), text=_number(v)) for v in values], high


def histogram(values: dict[str, np.ndarray], about: str, marks: dict[str, float]) -> Chart:
    """Counts of values by name, stacked. marks: text to where an upright line stands."""
    everything = np.concatenate([*values.values(), np.array(list(marks.values()))])
    low, high = float(everything.min()), float(everything.max())
    step = _step(high - low, BINS)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    edges = np.arange(first, last + 1) * step
    counts = np.stack([np.histogram(v, edges)[0] for v in values.values()])
    y, top = _upright(float(counts.sum(axis=0).max()))
    span = edges[-1] - edges[0]
    bars = []
    for b in range(len(edges) - 1):
        below = 0
        for series, name in enumerate(values):
            count = int(counts[series, b])
            if count:
                bars.append(
                    Bar(
                        x=_percent(b / (len(edges) - 1)), width=_percent(1 / (len(edges) - 1)),
                        y=_percent(1 - (below + count) / top), height=_percent(count / top), series=series,
                        title=f"{edges[b]:.4g} to {edges[b + 1]:.4g}: {count:,} {name}",
                    )
                )  # fmt: skip
            below += count
    return Chart(
        x=[Tick(at=_percent((v - edges[0]) / span), text=_number(v)) for v in _ticks(edges[0], edges[-1], 5)],
        y=y, names=list(values), about=about, bars=bars, lines=[],
        marks=[Tick(at=_percent((v - edges[0]) / span), text=text) for text, v in marks.items()],
    )  # fmt: skip


def _rounds(numbers: list[int]) -> tuple[list[Tick], float]:
    """Ticks for rounds that lie at equal distances, half a step from the sides; and the step."""
    step = 1 / max(1, numbers[-1] - numbers[0] + 1)
    shown = [n for n in numbers if n % max(1, math.ceil(_step(numbers[-1] - numbers[0], 8))) == 0] or numbers[:1]
    return [Tick(at=_percent((n - numbers[0] + 0.5) * step), text=str(n)) for n in shown], step


def lines(series: dict[str, dict[int, float]], about: str, form: str) -> Chart | None:
    """Values by round, a line a series. form: how a value is written. None if there is none."""
    series = {name: values for name, values in series.items() if values}
    if not series:
        return None
    numbers = sorted({n for values in series.values() for n in values})
    every = [v for values in series.values() for v in values.values()]
    step = _step(max(max(every) - min(every), 0.02), 4)
    low, high = math.floor(min(every) / step + 1e-6) * step, math.ceil(max(every) / step - 1e-6) * step
    high = high if high > low else low + step
    x, width = _rounds(numbers)
    drawn = []
    for number, values in enumerate(series.values()):
        points = [
            (_percent((n - numbers[0] + 0.5) * width), _percent((high - v) / (high - low)), f"round {n}: {v:{form}}")
            for n, v in sorted(values.items())
        ]
        path = "M" + "L".join(f"{px} {py}" for px, py, _ in points)
        drawn.append(Line(path=path, points=points if len(numbers) <= DOTS else [], series=number))
    return Chart(
        x=x, y=[Tick(at=_percent((v - low) / (high - low)), text=f"{v:{form}}") for v in _ticks(low, high, 4)],
        names=list(series), about=about, bars=[], lines=drawn, marks=[],
    )  # fmt: skip


def columns(series: dict[str, dict[int, float]], about: str, unit: str) -> Chart | None:
    """Values by round, stacked. None if there is none."""
    series = {name: values for name, values in series.items() if any(values.values())}
    if not series:
        return None
    numbers = sorted({n for values in series.values() for n in values})
    y, top = _upright(max(sum(values.get(n, 0.0) for values in series.values()) for n in numbers))
    x, width = _rounds(numbers)
    bars = []
    for n in numbers:
        below = 0.0
        for number, (name, values) in enumerate(series.items()):
            value = values.get(n, 0.0)
            if value:
                bars.append(
                    Bar(
                        x=_percent((n - numbers[0] + 0.18) * width), width=_percent(0.64 * width),
                        y=_percent(1 - (below + value) / top), height=_percent(value / top), series=number,
                        title=f"round {n}: {_number(value)}{unit} {name}",
                    )
                )  # fmt: skip
            below += value
    return Chart(x=x, y=y, names=list(series), about=about, bars=bars, lines=[], marks=[])
