"""How often what `pipeline.mine` answers is what was measured.

Its bound is fitted on all corpora but one, and asked about that one. A difference below LEVEL counts for nothing.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality import page
from benchmarks.quality.page import Stored
from pipeline.reporting.advice import Signals, answer

LEVEL = 0.01  # of MAP@R


@dataclass(frozen=True, kw_only=True)
class Case:
    """gain: of mined packs with memory over the best opponent, mean of the splits. signals: of each split that has."""

    corpus: str
    budget: float
    gain: float
    signals: tuple[Signals, ...]

    def right(self, most_met: float) -> float:
        """The share of splits in which the answer is what was measured."""
        pays = self.gain > 0
        return statistics.mean((answer(one, most_met) == "mine") == pays for one in self.signals)


def cases(every: Mapping[str, Stored], budgets: Sequence[float]) -> list[Case]:
    found = []
    for name, kept in every.items():
        for budget in budgets:
            best, ours = page.best_opponent(kept, budget), page.reported(kept, "packs", budget)
            signals = tuple(one.signals for one in ours if one.signals)
            if best and signals:
                gain = statistics.mean(page.gain(kept, "packs", best, budget))
                found.append(Case(corpus=name, budget=budget, gain=gain, signals=signals))
    return [case for case in found if abs(case.gain) >= LEVEL]


def balanced(asked: Sequence[tuple[Case, float]]) -> float:
    """Balanced accuracy, of cases each with the bound that it is answered by; NaN if all are of one sign."""
    signs = [[case.right(bound) for case, bound in asked if (case.gain > 0) == pays] for pays in (True, False)]
    return statistics.mean(map(statistics.mean, signs)) if all(signs) else float("nan")


def fitted(known: Sequence[Case]) -> float:
    """The bound on `classes_met` that answers best, halfway between two signals; of those that do alike, the two
    farthest apart."""
    values = sorted({one.classes_met for case in known for one in case.signals})
    around = {(low + high) / 2: high - low for low, high in itertools.pairwise([0.0, *values, 2 * values[-1]])}

    def score(bound: float) -> tuple[float, float]:
        found = balanced([(case, bound) for case in known])
        of_all = statistics.mean(case.right(bound) for case in known)
        return of_all if math.isnan(found) else found, around[bound]

    return max(around, key=score)


def judged(found: Sequence[Case]) -> float:
    """Balanced accuracy, each corpus answered with the bound that the others give; NaN of a single corpus."""
    others = {case.corpus: [one for one in found if one.corpus != case.corpus] for case in found}
    if len(others) < 2:
        return float("nan")
    bounds = {corpus: fitted(known) for corpus, known in others.items()}
    return balanced([(case, bounds[case.corpus]) for case in found])
