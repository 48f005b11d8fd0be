"""What the live view says."""

import time

from pipeline.process.progress import Stage, live


def test_without_a_terminal_there_are_lines_when_something_went_on(caplog):
    caplog.set_level("INFO", "triplet-miner")
    seen = []
    stages = (
        Stage(name="embed", unit="rows", total=1000, done=lambda: 500),
        Stage(name="write", unit="shards", total=3, done=lambda: seen.append(1) or 0),
    )
    with live(*stages, line_seconds=0.01):
        while len(seen) < 5:
            time.sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == ["embed: 500 of 1,000 rows"]


def test_without_a_command_that_shows_our_log_there_is_nothing(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich is told of a terminal
    with live(Stage(name="scan", unit="work items", total=3, done=lambda: 2)):
        time.sleep(0.3)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_are_bars(monkeypatch, capsys, caplog):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich is told of a terminal
    caplog.set_level("INFO", "triplet-miner")
    asked = []
    with live(Stage(name="scan", unit="work items", total=3, done=lambda: asked.append(1) or 2)):
        while len(asked) < 2:
            time.sleep(0.01)
    said = capsys.readouterr()
    assert "scan" in said.err and "2/3" in said.err and "work items" in said.err and not said.out
