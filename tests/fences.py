"""The fenced blocks of README.md and docs/*.md, and how a reader is to take each.

    bash, python       run, in the order of the page
    text               what a command prints, or a file that nobody runs
    toml, json, yaml   a file

A comment on the line above a block changes that: `<!-- not run: WHY -->`, or `<!-- file: NAME -->` for a block that a
reader saves under that name before going on.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("bash", "python")
SHOWN = ("text", "toml", "json", "yaml")
FENCE = re.compile(r"^(?:<!-- (not run|file):(.*?)-->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """mark: `not run`, `file` or nothing; said: what the mark says. line: where the fence begins."""

    language: str
    code: str
    line: int
    mark: str
    said: str

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.mark


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=found[3], code=found[4], mark=found[1] or "", said=(found[2] or "").strip(),
            line=text.count("\n", 0, found.start(3)) + 1,
        )
        for found in FENCE.finditer(text)
    ]  # fmt: skip
