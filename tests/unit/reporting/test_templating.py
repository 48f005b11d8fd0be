"""How values are written on a page."""

import pytest

from pipeline.corpus.manifest import Feature
from pipeline.reporting import templating
from pipeline.reporting.templating import breakable, metric, metrics_of, number, seconds, size, words


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0%"), (0.004, "0.4%"), (0.0999, "10.0%"), (0.1, "10%"), (1.0, "100%")]
)
def test_shares(value, text):
    assert templating.share(value) == text


def test_numbers():
    assert [number(None), number(1234567), number(0.5), number(1 / 3, 4)] == ["–", "1,234,567", "0.500", "0.3333"]


def test_times():
    assert [seconds(3.04), seconds(90), seconds(5400)] == ["3.0 s", "1.5 min", "1.5 h"]


def test_names_and_shapes():
    assert words("no_negative_in_pack") == "no negative in pack"
    assert [metric("recall_at_10"), metric("map_at_r"), metric("equal_error_rate")] == [
        "R@10", "MAP@R", "equal error rate",
    ]  # fmt: skip
    assert size(Feature(kind="image", shape=(None, None, 3), dtype="uint8")) == "any × any × 3"
    assert size(Feature(kind="text", shape=(), dtype="string")) == ""


def test_a_metric_has_a_column_if_any_evaluation_has_a_number_for_it():
    found = [{"map_at_r": 0.5, "nmi": None}, {"roc_auc": 0.9, "roc_auc_std": 0.1, "queries": 12, "far_std": 0.2}]
    assert metrics_of(found) == ["map_at_r", "roc_auc", "queries", "far_std"]


def test_breaks_are_markup_and_names_are_not():
    assert breakable("a/b_<i>.png") == "a/<wbr>b_<wbr>&lt;i&gt;.<wbr>png"
    assert breakable("") == ""


def test_a_page_is_written_with_the_values_escaped(tmp_path):
    parts = templating.templates().get_template("parts.html").module
    assert "<dd>&lt;b&gt;</dd>" in parts.fact("name", "<b>")
    templating.write_page(tmp_path / "page.html", "base.html")
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") and "default-src 'none'" in page


def test_a_deviation_stands_with_its_mean_if_there_is_one():
    parts = templating.templates().get_template("parts.html").module
    found = ({"opis": 0.125, "opis_std": 0.03125}, {"opis": None, "opis_std": None})
    table = parts.quality([("round 0’s", "eval", measures) for measures in found], "quality")
    assert '<td class="n">0.125 ± 0.031</td>' in table and '<td class="n">–</td>' in table
