"""Puts the results of `make bench-peers bench-encoders` into docs/results/ and docs/benchmarks.md.

    python -m benchmarks.publish

The page's section between the two marker comments is written anew from the JSON files; nothing in it is typed by hand.
"""

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks.publish: begin -->", "<!-- benchmarks.publish: end -->"


def provenance(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"{result['date']}, {result['cores']} cores of an {result['machine']}; {versions}."


def bounds(result: dict[str, Any]) -> list[str]:
    lines = ["| | value | bound | |", "|---|---|---|---|"]
    for row in result["rows"]:
        bound = "" if row["bound"] is None else f"{'>=' if row['at_least'] else '<='} {row['bound']:g}"
        value = f"{row['value']:+.3f}" if "MAP@R" in row["what"] else f"{row['value']:.2f}"
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"| {row['what']}{note} | {value} | {bound} | {row['verdict']} |")
    return lines


def peers(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, table in result["tables"].items():
        lines += [
            f"{name}:", "",
            "| | seconds, all | CPU seconds | without imports | peak MB | triplets | valid | semi-hard | same label |",
            "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for what, row in table.items():
            shares = " | ".join(f"{row[key]:.1%}" for key in ("valid", "semi_hard", "same_label"))
            taken = " | ".join(f"{row[key]:.1f}" for key in ("seconds", "cpu_seconds", "work"))
            lines.append(f"| {what} | {taken} | {row['peak_mb']:,.0f} | {row['triplets']:,} | {shares} |")
        lines.append("")
    lines += bounds(result) + [""]
    lines += [textwrap.fill(f"- {name}: {can}.", 118, subsequent_indent="  ") for name, can in result["can"].items()]
    return [*lines, "", provenance(result)]


def encoders(result: dict[str, Any]) -> list[str]:
    lead = "MAP@R on classes that training never saw. Each value is a difference; its parts are in brackets."
    return ["## make bench-encoders", "", lead, "", *bounds(result), "", provenance(result)]


def main() -> int:
    DOCS.mkdir(parents=True, exist_ok=True)
    lines = [BEGIN]
    for name, section in (("peers", peers), ("encoders", encoders)):
        new = HERE / "results" / f"{name}.json"
        if new.exists():
            shutil.copyfile(new, DOCS / new.name)
        if (DOCS / new.name).exists():
            lines += ["", *section(json.loads((DOCS / new.name).read_text()))]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{PAGE} lacks the lines {BEGIN} and {END}", file=sys.stderr)
        return 1
    PAGE.write_text("\n".join([before + lines[0], *lines[1:], "", END]) + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
