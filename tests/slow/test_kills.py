"""`make test-faults` with fewer kills; those of rounds are in test_rounds_killed.py."""

import faults
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", faults.BAD)
def test_bad_input(name, mined, tmp_path):
    right, said = faults.try_bad(name, mined, tmp_path / "scratch")
    assert right, said


def test_kills_change_nothing(tmp_path):
    done = faults.kills("digits", tmp_path, 6, seed=1, rounds=False)
    hit = {kill.stage for kill in done if not kill.was_done}
    assert len(hit) >= 5 and hit <= {"ingest", "warm-up", "embed", "scan", "write", "train"}
    assert all(kill.same for kill in done), [kill for kill in done if not kill.same]
