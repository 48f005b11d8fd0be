"""`make test-faults` with fewer kills."""

import faults
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", faults.BAD)
def test_bad_input(name, mined, tmp_path):
    right, said = faults.try_bad(name, mined, tmp_path / "scratch")
    assert right, said


def test_kills_change_nothing(tmp_path):
    done = faults.kills("digits", tmp_path, 9, seed=1)
    hit = {kill.stage for kill in done if not kill.was_done}
    stages = {"ingest", "warm-up", "embed", "scan", "write", "train", "plan", "round 0", "round 1"}
    assert len(hit) >= 7 and hit <= stages
    assert all(kill.same for kill in done), [kill for kill in done if not kill.same]
