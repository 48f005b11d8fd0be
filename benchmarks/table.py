"""A benchmark's rows: printed as a table with bounds, written as JSON, turned into an exit code."""

import contextlib
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "numba", "tensorflow", "apache-beam")


@dataclass(frozen=True, kw_only=True)
class Row:
    """bound: what `value` may be at most, or with at_least what it must be; None where it is only reported."""

    what: str
    value: float
    bound: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.bound is None:
            return "-"
        return "PASS" if (self.value >= self.bound if self.at_least else self.value <= self.bound) else "SHORT"


def show(row: Row) -> None:
    bound = "" if row.bound is None else f"{'>=' if row.at_least else '<='} {row.bound:g}"
    print(f"{row.what:<68}{row.value:>9.3f}{bound:>9}  {row.verdict:<6}{row.note}", flush=True)


def finish(name: str, rows: list[Row], versions: dict[str, str] | None = None, **details: object) -> int:
    """Writes benchmarks/results/NAME.json, `details` too. Returns 1 when a row is short.

    versions: of packages that another environment holds.
    """
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    result = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": cpu,
        "cores": os.cpu_count(),
        "versions": installed(*PACKAGES) | (versions or {}),
        "rows": [{**asdict(row), "verdict": row.verdict} for row in rows],
        **details,
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    short = sum(row.verdict == "SHORT" for row in rows)
    print(f"{short} of {len(rows)} rows short; written to {path}")
    return 1 if short else 0


def installed(*packages: str) -> dict[str, str]:
    """The versions of those that are."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def seconds(function: object, repeat: int = 5) -> list[float]:
    """Wall seconds of each of `repeat` calls."""
    taken = []
    for _ in range(repeat):
        started = time.perf_counter()
        function()  # type: ignore[operator]
        taken.append(time.perf_counter() - started)
    return taken


def paired(one: object, other: object, repeat: int = 5) -> tuple[float, float, float]:
    """The median of the ratios one/other, taken in turn; and the median seconds of each."""
    pairs = [(seconds(one, 1)[0], seconds(other, 1)[0]) for _ in range(repeat)]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )
