"""Where bars, lines and ticks lie: percent of the drawing, y downwards."""

import numpy as np
import pytest

from pipeline.reporting.charts import DOTS, columns, histogram, lines


def test_a_histogram_stacks_its_series():
    chart = histogram("title", "note", {"a": np.array([0.0, 0.1, 0.1]), "b": np.array([0.1])}, {"here": 0.2})
    first, low, high = chart.bars  # one value of a; two more, and one of b upon them
    assert [bar.series for bar in chart.bars] == [0, 0, 1] and chart.names == ["a", "b"]
    assert low.x == high.x == 50 and first.x == 0
    assert low.height == pytest.approx(2 * high.height, abs=0.02)
    assert high.y + high.height == pytest.approx(low.y, abs=0.02)
    assert low.title == "0.1 to 0.105: 2 a"
    assert chart.marks[0].at == 100 and (chart.x[0].at, chart.x[0].text) == (0, "0")


def test_a_histogram_counts_every_value_once():
    values = np.random.default_rng(0).normal(1, 0.3, 1000).astype(np.float32)
    chart = histogram("title", "note", {"a": values}, {})
    assert sum(int(bar.title.split()[3]) for bar in chart.bars) == 1000
    assert all(0 <= bar.y and bar.y + bar.height <= 100.01 for bar in chart.bars)


@pytest.mark.parametrize("value", [0.0, 0.123, 0.3, 0.7, 2.0, 4.0])
def test_a_histogram_of_one_value_is_one_bar_with_ticks(value):
    chart = histogram("title", "note", {"a": np.full(3, value, np.float32)}, {})
    assert len(chart.bars) == 1 and chart.bars[0].title.endswith(": 3 a")
    assert len({tick.text for tick in chart.x}) == len(chart.x) > 1


def test_lines_go_up_with_their_values():
    chart = lines("title", "note", {"validation": {1: 0.5, 3: 0.7}, "eval": {}}, ".2f")
    [line] = chart.lines
    assert chart.names == ["validation"]
    assert [title for _, _, title in line.points] == ["round 1: 0.50", "round 3: 0.70"]
    assert line.points[0][1] > line.points[1][1]  # y grows downwards
    assert [(tick.text, tick.at) for tick in chart.x] == [("1", 16.67), ("3", 83.33)]
    assert [(tick.text, tick.at) for tick in chart.y[::2]] == [("0.50", 0), ("0.60", 50), ("0.70", 100)]
    assert line.path == "M{} {}L{} {}".format(*line.points[0][:2], *line.points[1][:2])


def test_one_round_and_equal_values_have_a_place():
    chart = lines("title", "note", {"eval": {7: 0.5}}, ".2f")
    assert chart.lines[0].points == [(50.0, chart.lines[0].points[0][1], "round 7: 0.50")]
    assert 0 <= chart.lines[0].points[0][1] <= 100 and len(chart.y) > 1


def test_many_rounds_have_no_dots_and_few_ticks():
    chart = lines("title", "note", {"eval": {n: n / 300 for n in range(5 * DOTS)}}, ".2f")
    assert not chart.lines[0].points and 2 < len(chart.x) < 12


def test_columns_leave_out_what_is_nowhere():
    chart = columns("title", "note", {"mining": {0: 3.0, 1: 1.0}, "training": {1: 2.0}, "none": {0: 0.0}}, " s")
    assert chart.names == ["mining", "training"]
    assert [bar.title for bar in chart.bars] == ["round 0: 3 s mining", "round 1: 1 s mining", "round 1: 2 s training"]
    mining, below, above = chart.bars
    assert above.y == mining.y and above.x == below.x > mining.x + mining.width
    assert above.height == pytest.approx(2 * below.height, abs=0.02)


def test_without_values_there_is_no_chart():
    assert lines("title", "note", {"eval": {}}, ".2f") is None
    assert columns("title", "note", {}, "") is None
    assert columns("title", "note", {"hard": {0: 0.0}}, "") is None
