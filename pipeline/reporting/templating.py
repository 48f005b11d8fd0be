"""How the report's pages are written: the templates of this package, and the filters that they format with."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.corpus.manifest import Feature
from pipeline.files import storage

METRICS = {
    "map_at_r": "MAP@R", "r_precision": "R-precision", "mean_distance": "mean distance", "roc_auc": "ROC AUC",
    "val_at_far_1e-3": "VAL at FAR 1e-3", "accuracy_10_fold": "10-fold accuracy", "nmi": "NMI",
}  # fmt: skip


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def number(value: float | None, digits: int = 3) -> str:
    """Integers with commas, others with so many digits after the point."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def seconds(value: float) -> str:
    minutes, hours = value / 60, value / 3600
    return f"{value:.1f} s" if value < 90 else f"{minutes:.1f} min" if minutes < 90 else f"{hours:.1f} h"


def words(name: str) -> str:
    return name.replace("_", " ")


def metric(name: str) -> str:
    if name.startswith("recall_at_"):
        return f"R@{name.removeprefix('recall_at_')}"
    return METRICS.get(name, words(name))


def metrics_of(evaluations: Iterable[dict[str, Any]]) -> list[str]:
    """The names of all numbers that evaluations hold, without NAME_std, which stands with NAME."""
    names = dict.fromkeys(name for e in evaluations for name, value in e.items() if isinstance(value, int | float))
    return [name for name in names if name.removesuffix("_std") not in names.keys() - {name}]


def breakable(name: str) -> Markup:
    """A name that may be broken after / _ . and -, in markup."""
    return Markup("<wbr>").join(re.findall(r"[^/_.-]*[/_.-]|[^/_.-]+", name))


def size(feature: Feature) -> str:
    """A feature's shape."""
    return " × ".join("any" if n is None else str(n) for n in feature.shape)


@functools.cache
def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.reporting"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (share, number, seconds, words, metric, metrics_of, breakable, size)
    environment.filters.update({filter.__name__: filter for filter in filters})
    return environment


def write_page(path: Path, template: str, **values: Any) -> None:
    html = templates().get_template(template).render(values)
    storage.write_atomically(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))
