"""Which settings an arm has on a corpus: the best of its grid, by a descent along one setting after the other.

On a split of the classes that no table reports (of the largest corpora a third of them), by MAP@R of its validation
classes, at the smaller budget. All from stored cells: what is not stored yet is named.
"""

from benchmarks.quality.arms import ARMS, CONTROL_OF, InBatch, Settings
from benchmarks.quality.cells import Cell, Found
from benchmarks.quality.corpora import CORPORA

SPLIT = 0
BUDGET = 1.0


def settle(corpus: str, arm: str, kept: dict[str, Found]) -> tuple[Settings | None, list[Cell]]:
    """The settings; or None and the cells that must be there to choose the next. kept: of the corpus."""
    if arm in CONTROL_OF:
        return settle(corpus, CONTROL_OF[arm], kept)
    warmup = None
    if not isinstance(ARMS[arm], InBatch):
        warmup, wanted = settle(corpus, "semi-hard", kept)
        if warmup is None:
            return None, wanted
    grid = {"learning_rate": CORPORA[corpus].rates, **ARMS[arm].grid}
    chosen = {name: values[0] for name, values in grid.items()}
    for name, values in grid.items():
        cells = [
            Cell(
                corpus=corpus, arm=arm, budget=BUDGET, split=SPLIT, settings={**chosen, name: value}, warmup=warmup,
                on="validation", share=CORPORA[corpus].tuned_on,
            )
            for value in values
        ]  # fmt: skip
        wanted = [cell for cell in cells if cell.key() not in kept]
        if wanted:
            return None, wanted
        chosen[name] = max(values, key=lambda value, cells=cells, values=values: (
            kept[cells[values.index(value)].key()].map_at_r
        ))  # fmt: skip
    return chosen, []
