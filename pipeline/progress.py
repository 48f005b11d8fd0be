"""The live view of a command: stage, items done of total, rate, time left. Without a terminal, a line now and then."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from pipeline import command

LINE_SECONDS = 30.0  # between two lines where there is no terminal


class Stage:
    """A stage to look at while it runs.

    unit: of its items, in the plural. total: how many there are. done: how many are done, asked again and again.
    """

    def __init__(self, name: str, unit: str, total: int, done: Callable[[], int]):
        self.name, self.unit, self.total, self.done = name, unit, total, done
        self.count = 0
        self._since: tuple[float, int] | None = None  # when it was first seen at work, and how far it was

    def look(self, now: float) -> bool:
        """Asks how far it is. now: seconds, of time.monotonic. Returns whether it went on."""
        before, self.count = self.count, self.done()
        if self.count and self._since is None:
            self._since = (now, self.count)
        return self.count != before

    def text(self, now: float) -> str:
        """`12 of 40 shards, 3.1 a second, 0:00:09 left`; the rate since the first item, nothing before it."""
        if self._since is None:
            return ""
        text = f"{self.count:,} of {self.total:,} {self.unit}"
        seconds, items = now - self._since[0], self.count - self._since[1]
        if not items or not seconds or self.count >= self.total:
            return text
        left = timedelta(seconds=round((self.total - self.count) * seconds / items))
        return f"{text}, {items / seconds:,.3g} a second, {left} left"


@contextmanager
def live(*stages: Stage) -> Iterator[None]:
    """Shows the stages on stderr while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    stopped = threading.Event()
    columns = (TextColumn("{task.description:<8}"), BarColumn(20), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = [bars.add_task(stage.name, total=stage.total, text="") for stage in stages]

        def watch() -> None:
            while not stopped.wait(0.25 if console.is_terminal else LINE_SECONDS):
                now = time.monotonic()
                for task, stage in zip(tasks, stages, strict=True):
                    went_on = stage.look(now)
                    bars.update(task, completed=stage.count, text=stage.text(now))
                    if went_on and not console.is_terminal:
                        command.log.info("%s: %s", stage.name, stage.text(now))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
