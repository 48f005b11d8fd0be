"""What a command prints at its end, and a loop that saves its state before it stops."""

import json
import signal
import threading
from dataclasses import dataclass

import pytest

from pipeline.process import commands


@dataclass(frozen=True, kw_only=True)
class Baked:
    cakes: int
    shares: dict[str, tuple[float, ...]]

    def __str__(self):
        return f"{self.cakes} cakes"


def test_a_result_is_printed_as_text_or_as_json(capsys):
    result = Baked(cakes=3, shares={"hard": (0.5, 1.0)})
    commands.show(result, as_json=False)
    assert capsys.readouterr().out == "3 cakes\n"
    commands.show(result, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"cakes": 3, "shares": {"hard": [0.5, 1.0]}}


def test_in_a_notebook_a_loop_saves_its_state_before_ctrl_c_ends_it():
    saved, steps = [], []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), commands.postponed_stop(lambda: saved.append(len(steps))) as stop_if_asked:
        while len(steps) < 9:
            steps.append(1)
            if len(steps) == 4:
                signal.raise_signal(signal.SIGINT)
            stop_if_asked()
    assert saved == [4] and len(steps) == 4 and signal.getsignal(signal.SIGINT) == before


def test_in_a_thread_nothing_is_postponed():
    done = []

    def loop():
        with commands.postponed_stop(lambda: done.append("saved")) as stop_if_asked:
            stop_if_asked()
            done.append("ended")

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert done == ["ended"]
