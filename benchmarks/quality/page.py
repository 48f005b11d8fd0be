"""The table and the picture of docs/does-it-pay.md, made from the stored cells."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.quality import tuning
from benchmarks.quality.arms import ARMS, OPPONENTS
from benchmarks.quality.cells import Found
from benchmarks.quality.corpora import CORPORA

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE, PICTURE = DOCS / "does-it-pay.md", DOCS / "does-it-pay.png"
BEGIN, END = "<!-- benchmarks.quality: begin -->", "<!-- benchmarks.quality: end -->"
HEAD = "| | MAP@R | R@1 | passes trained | rows embedded to mine | CPU seconds | peak MB | settings |"
Stored = Mapping[str, Found]


def reported(kept: Stored, arm: str, budget: float) -> list[Found]:
    """An arm's cells of the splits that are reported, by split, with the settings that were chosen: a longer grid may
    have left others behind."""
    chosen = {name: tuning.settle(name, arm, kept)[0] for name in {one.cell.corpus for one in kept.values()}}
    found = [
        one for one in kept.values()
        if (one.cell.arm, one.cell.budget, one.cell.on) == (arm, budget, "eval")
        and one.cell.settings == chosen[one.cell.corpus]
    ]  # fmt: skip
    return sorted(found, key=lambda one: one.cell.split)


def mean(cells: Sequence[Found], name: str) -> float:
    return statistics.mean(float(getattr(one, name)) for one in cells)


def deviation(kept: Stored, arm: str, budget: float) -> float:
    """Of MAP@R over the splits; NaN of a single one."""
    values = [one.map_at_r for one in reported(kept, arm, budget)]
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def best_opponent(kept: Stored, budget: float) -> str | None:
    """By its mean on the reported splits themselves, which is in its favour."""
    there = [arm for arm in OPPONENTS if reported(kept, arm, budget)]
    return max(there, key=lambda arm: mean(reported(kept, arm, budget), "map_at_r"), default=None)


def gain(kept: Stored, arm: str, other: str, budget: float) -> list[float]:
    """MAP@R of one arm minus the other's, of each split that both have."""
    one, two = ({f.cell.split: f.map_at_r for f in reported(kept, name, budget)} for name in (arm, other))
    return [one[split] - two[split] for split in sorted(one.keys() & two.keys())]


def table(name: str, kept: Stored, budget: float) -> list[str]:
    best = best_opponent(kept, budget)
    lines = [f"### {CORPORA[name].name}, {budget:g} {'pass' if budget == 1 else 'passes'} over the corpus", "", HEAD]
    lines.append("|---" * HEAD.count(" |") + "|")
    for arm in ARMS:
        cells = reported(kept, arm, budget)
        if cells:
            spread = f" ± {deviation(kept, arm, budget):.3f}" if len(cells) > 1 else ""
            score = f"{mean(cells, 'map_at_r'):.3f}{spread}"
            numbers = [f"{mean(cells, key):,.0f}" for key in ("passes", "forwarded", "cpu_seconds", "peak_mb")]
            settings = ", ".join(f"{key} {value}" for key, value in cells[0].cell.settings.items())
            shown = [f"**{score}**" if arm == best else score, f"{mean(cells, 'recall_at_1'):.3f}", *numbers, settings]
            lines.append(f"| {ARMS[arm].name} | {' | '.join(shown)} |")
    return [*lines, ""]


def draw(every: Mapping[str, Stored], budgets: Sequence[float]) -> None:
    """What mined packs gain over the best opponent: against the budget, and against the packs that hold all classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    by_budget, by_classes = figure.subplots(1, 2, sharey=True)
    for name, kept in every.items():
        points = []
        for budget in budgets:
            best, ours = best_opponent(kept, budget), reported(kept, "packs", budget)
            gains = gain(kept, "packs", best, budget) if best else []
            met = [one.signals.classes_met for one in ours if one.signals]
            points += [(budget, statistics.mean(gains), 1 / statistics.mean(met))] if gains else []
        if points:
            passes, gained, packs = zip(*points, strict=True)
            by_budget.plot(passes, gained, "o-", label=CORPORA[name].name)
            by_classes.plot(packs, gained, "o")
    by_budget.set(xlabel="passes over the corpus, mining's counted", ylabel="MAP@R over the best opponent")
    by_classes.set(xlabel="classes in the corpus over classes in a pack")
    for axes, ticks in ((by_budget, budgets), (by_classes, (1, 10, 100, 1000))):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(PICTURE)


def write(every: Mapping[str, Stored], budgets: Sequence[float]) -> None:
    """Puts the tables between the page's two marks."""
    lines = [line for name, kept in every.items() for budget in budgets if best_opponent(kept, budget)
             for line in table(name, kept, budget)]  # fmt: skip
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([f"{before}{BEGIN}", "", *lines, END]) + after, encoding="utf-8")
