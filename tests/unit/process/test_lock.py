"""One miner and one trainer at a time in a run directory."""

import os
import subprocess
import sys

import pytest

from pipeline.errors import Locked
from pipeline.files import storage
from pipeline.process import lock

HOLD = "import os, sys; from pathlib import Path; from pipeline.process import lock\n"
HOLD += "with lock.hold(Path(sys.argv[1]), lock.MINER): "


def test_the_second_miner_is_told_who_the_first_is(tmp_path):
    code = HOLD + "print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    message = f"{tmp_path} is held by a process that may mine: {holder.pid} on .*Wait until it is done, or stop it"
    for roles in ((lock.MINER,), (lock.MINER, lock.TRAINER), (lock.TRAINER, lock.MINER)):
        with pytest.raises(Locked, match=message), lock.hold(tmp_path, *roles):
            pass
    with lock.hold(tmp_path, lock.TRAINER):
        pass
    holder.communicate()
    with lock.hold(tmp_path, lock.MINER, lock.TRAINER):
        pass


def test_a_dead_holder_does_not_block_and_its_half_written_files_go(tmp_path):
    written = tmp_path / "rounds" / "0000" / "triplets"
    written.mkdir(parents=True)
    code = "from pipeline.files import storage; path = Path(sys.argv[1]) / 'rounds/0000/triplets/a.npy'\n"
    code = HOLD.replace("with lock", code + "with lock")
    code += "storage.write_atomically(path, lambda temporary: temporary.write_text('half') and os.kill(os.getpid(), 9))"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert len(storage.names(written)) == 1
    with lock.hold(tmp_path, lock.MINER):
        assert storage.names(written) == []


def test_a_bucket_has_no_lock():
    run_dir = storage.location(f"memory://lock-{os.getpid()}/run")
    with lock.hold(run_dir, lock.MINER), lock.hold(run_dir, lock.MINER):
        assert not run_dir.exists()
