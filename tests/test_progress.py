"""What the live view says."""

import json
import subprocess
import sys
import time

from pipeline import job, progress
from pipeline.progress import Stage, live


def test_rate_and_time_left_count_from_the_first_item_seen():
    """A run that goes on where another one was has that one's items from the start."""
    done = [0, 0, 40, 60, 100]
    stage = Stage("scan", "work items", 100, lambda: done.pop(0))
    said = [(stage.look(now), stage.text(now)) for now in (0.0, 50.0, 51.0, 61.0, 70.0)]
    assert said == [
        (False, ""),
        (False, ""),
        (True, "40 of 100 work items"),
        (True, "60 of 100 work items, 2 a second, 0:00:20 left"),
        (True, "100 of 100 work items"),
    ]


def test_without_a_terminal_there_are_lines_when_something_went_on(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    caplog.set_level("INFO", "triplet-miner")
    seen = []
    with live(Stage("embed", "rows", 1000, lambda: 500), Stage("write", "shards", 3, lambda: seen.append(1) or 0)):
        while len(seen) < 5:
            time.sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == ["embed: 500 of 1,000 rows"]


def test_counters_of_workers_as_a_table():
    worked = job.worked_of({"scan": 250, "scan/anchors": 1000, "embed/rows": 12})
    assert [line.split() for line in job.table(worked)] == [
        ["workers", "items", "seconds", "a", "second"],
        ["embed", "12", "rows", "0.0", "-"],
        ["scan", "1,000", "anchors", "0.2", "4,000"],
    ]
    assert job.table([]) == []


def test_what_workers_counted_is_kept_with_the_round(mined):
    stats = json.loads((mined / "rounds/0000/stats.json").read_text())
    assert stats["worker_items"] == {"embed": 1258, "scan": 1258, "write": 29}
    assert set(stats["worker_seconds"]) == set(stats["worker_items"])


def test_the_trainer_does_not_import_beam():
    code = "import sys, trainer.train; assert 'apache_beam' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
