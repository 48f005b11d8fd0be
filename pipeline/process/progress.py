"""The live view of a command: a bar a stage on a terminal, elsewhere a line now and then."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.files import storage
from pipeline.process.commands import log

LINE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """unit: of its items, in the plural. total: how many there are. done: how many are done, asked again and again."""

    name: str
    unit: str
    total: int
    done: Callable[[], int]

    @classmethod
    def of_files(cls, name: str, unit: str, total: int, directory: Path, suffix: str) -> "Stage":
        """Each item that is done leaves a file of that suffix in the directory."""
        return cls(name=name, unit=unit, total=total, done=lambda: storage.count_files(directory, suffix))


@contextmanager
def live(*stages: Stage, line_seconds: float = LINE_SECONDS) -> Iterator[None]:
    """Shows the stages on stderr while the block runs, where our log says as much as a command lets it.

    line_seconds: between two lines where there is no terminal.
    """
    console, stopped = Console(stderr=True), threading.Event()
    bars_wanted = console.is_terminal and log.isEnabledFor(logging.INFO)
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not bars_wanted
    ) as bars:
        tasks = [bars.add_task(stage.name, total=stage.total, unit=stage.unit) for stage in stages]

        def watch() -> None:
            seen = [0] * len(stages)
            while not stopped.wait(0.25 if console.is_terminal else line_seconds):
                for number, stage in enumerate(stages):
                    before, seen[number] = seen[number], stage.done()
                    bars.update(tasks[number], completed=seen[number])
                    if seen[number] != before and not console.is_terminal:
                        log.info("%s: %s of %s %s", stage.name, f"{seen[number]:,}", f"{stage.total:,}", stage.unit)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
