"""What is the same for every command: help, exit codes, signals, locks; and what stays out of a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import copied

from pipeline import mine
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.network import load_network
from pipeline.errors import InputError, Locked
from pipeline.files.layout import Run
from pipeline.mining import job
from pipeline.mining.manifest import open_triplets
from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from pipeline.process import lock
from pipeline.process.beam import beam_options
from trainer import train
from trainer.loop import train_newest
from trainer.options import TrainOptions

ROOT = Path(__file__).parents[2]
COMMANDS = ["ingest", "init", "warmup", "mine", "train", "rounds", "evaluate", "embed", "report", "records"]


def python(code, *arguments, **how):
    """Runs some lines in a process of their own, which finds our packages wherever it is."""
    call = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(call, capture_output=True, text=True, env=environment, **how)


HELP = """
import contextlib, io, json, sys
from pipeline.process.commands import console
said = {}
for name in sys.argv[1:]:
    sys.argv = ["/usr/bin/triplet-" + name, "--help"]
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")  # as terminals are
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        console()
    out.flush()
    said[name] = out.buffer.getvalue().decode().splitlines()
heavy = [name for name in ("tensorflow", "keras", "apache_beam", "pyarrow") if name in sys.modules]
print(json.dumps({"said": said, "heavy": heavy}))
"""


def test_help_fits_a_screen_and_needs_no_tensorflow_even_beside_a_users_own_modules(tmp_path):
    (tmp_path / "trainer").mkdir()
    for path in (tmp_path / "trainer" / "__init__.py", tmp_path / "pipeline.py"):
        path.write_text("raise SystemExit('a module of the user was imported')")
    done = python(HELP, *COMMANDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    for name, lines in found["said"].items():
        module = f"{'trainer' if name in ('init', 'warmup', 'train', 'evaluate') else 'pipeline'}.{name}"
        assert lines[0].startswith(f"usage: python -m {module} "), lines[:1]
        assert 8 < sum(-(-max(len(line), 1) // 100) for line in lines) <= 50, name  # a terminal folds long ones


ENDS = """
import sys
from pipeline.errors import InputError, Locked, WrongOption
from pipeline.process import commands
def main(argv):
    if argv == ["done"]:
        return 0
    raise {"input": InputError("a.png is no image"), "option": WrongOption("unknown option --x"),
           "locked": Locked("held by another"), "disk": OSError(28, "No space left on device", "/run/a"),
           "bug": KeyError("x")}[argv[0]]
commands.run(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        ("done", 0, ""), ("input", 4, "ERROR a.png is no image\n"), ("option", 2, "ERROR unknown option --x\n"),
        ("locked", 5, "ERROR held by another\n"), ("bug", 1, "this is a bug, or the runner's own failure: KeyError"),
        ("disk", 1, "No space left on device: '/run/a'. What was finished is kept; mend it and run the same"),
    ],
)  # fmt: skip
def test_exit_codes_and_one_line_for_what_went_wrong(end, code, says):
    done = python(ENDS, end)
    assert done.returncode == code and says in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == (0 if end == "done" else 1) or end == "bug"


def test_a_workers_error_is_the_commands_and_one_line(small_run):
    [shard] = Run(small_run).corpus.glob("train-*.tfrecord")
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=rf"^{shard} is not what [^\n]*Restore it, or make {shard.parent} again.$"):
        mine.main(["--run_dir", str(small_run)])


# A step that goes on for a minute, in this process or in workers.
SLOW = """
import sys, time
from pathlib import Path
import apache_beam as beam
from pipeline.process import commands
from pipeline.process.beam import beam_options, run
def slow(path):
    Path(path).touch()
    time.sleep(60)
class Options: __dataclass_fields__ = {}
commands.run(lambda argv: run(
    beam_options(argv[1:], Options()), lambda pipeline: pipeline | beam.Create([argv[0]]) | beam.Map(slow)))
"""
WORKERS = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGTERM, []), (signal.SIGINT, []), (signal.SIGTERM, WORKERS)], ids=str
)
def test_a_signal_ends_a_command_whatever_beam_is_at(tmp_path, number, options):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "begun"), *options], stderr=subprocess.PIPE, text=True,
        cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(10) == -number
    assert f"stopped by {number.name}; what was finished is kept" in process.stderr.read()
    deadline = time.monotonic() + 10
    while subprocess.run(["ps", "-s", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, "its workers live on"
        time.sleep(0.1)


def test_a_worker_that_is_killed_is_named_as_a_lack_of_memory(tmp_path):
    """Beam itself would wait for it forever."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "begun"), *WORKERS], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(1)
    started = psutil.Process(process.pid).children(recursive=True)
    next(worker for worker in started if "sdk_worker_main" in worker.cmdline()[-1] and worker.name() != "sh").kill()
    log = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert (
        "ERROR a worker process of Beam was killed, most likely for lack of memory. Give fewer workers "
        "(--direct_num_workers, now 2), or more memory. What was finished is kept; mend it and run the same command "
        "again.\n"
    ) in log
    assert all(not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE for worker in started)


SLOW_TO_END = """
import atexit, time
import apache_beam as beam
from pipeline.process import commands
from pipeline.process.beam import beam_options, run
def slow(n):
    atexit.register(time.sleep, 1.5)
class Options: __dataclass_fields__ = {}
commands.run(lambda argv: run(
    beam_options(argv, Options()),
    lambda pipeline: pipeline | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(slow)))
"""


def test_workers_that_end_one_after_the_other_are_not_lost():
    """Eight of them; Beam waits for each before it ends the next."""
    options = ["--direct_num_workers=8", "--direct_running_mode=multi_processing"]
    done = subprocess.run([sys.executable, "-c", SLOW_TO_END, *options], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_command_whose_log_nobody_reads_ends_too():
    talks = "from pipeline.process import commands\ndef main(argv):\n    while True: commands.log.info('x' * 99)\n"
    process = subprocess.Popen([sys.executable, "-c", talks + "commands.run(main)"], stderr=subprocess.PIPE, cwd=ROOT)
    time.sleep(3)  # until the pipe is full
    process.terminate()
    assert process.wait(30) in (-signal.SIGTERM, -signal.SIGKILL)


# For minutes in one call of C, as a long step or compile is: no handler of Python's runs meanwhile.
BUSY = """
import hashlib, sys, time
from pipeline.process import commands
def busy(): hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
def main(argv):
    print("begun", flush=True)
    if argv[0] == "computes":
        busy()
    with commands.postponed_stop(busy if argv[0] == "saves" else lambda: time.sleep(2)) as stop_if_asked:
        while True:
            time.sleep(.01)
            stop_if_asked()
commands.run(main)
"""


@pytest.mark.parametrize(
    ("at", "signals", "by", "least", "most"),
    [
        ("computes", [0], signal.SIGKILL, 5, 15), ("computes", [0, 1.5], signal.SIGKILL, 1.5, 7),
        ("saves", [0], signal.SIGKILL, 5, 15), ("saves", [0, 1.5], signal.SIGKILL, 1.5, 7),
        ("saves soon", [0, 0.01], signal.SIGTERM, 2, 7),  # `timeout` sends its signal twice: it is one
    ],
)  # fmt: skip
def test_a_signal_ends_what_no_handler_can_within_ten_seconds_and_a_second_one_at_once(at, signals, by, least, most):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, at], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    begun = time.monotonic()
    for later in signals:
        time.sleep(max(0.0, begun + later - time.monotonic()))
        process.terminate()
    assert process.wait(20) == -by
    assert least <= time.monotonic() - begun < most
    long = "" if at == "saves soon" else " in the middle of something long"
    assert f"stopped by SIGTERM{long}; what was finished is kept" in process.stderr.read()


def test_a_miner_that_is_stopped_goes_on_to_the_same_triplets(small_run, small_mined):
    """While it runs a second one is refused and named the first; and its lock is free when it is gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.mine", "--run_dir", str(small_run)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(Run(small_run).round(0).path.glob("embeddings/*/*.npy")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    with pytest.raises(Locked, match=f"held by a process that may mine: {process.pid} on "):
        mine.main(["--run_dir", str(small_run)])
    process.terminate()
    said, log = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM and not said and "stopped by SIGTERM" in log
    assert not Run(small_run).round(0).manifest.exists()
    assert mine.main(["--run_dir", str(small_run)]) == 0
    assert results(small_run, 1) == results(small_mined, 1)


def results(run_dir, rounds, trained=False):
    """Digests of so many rounds' triplets, and of the checkpoints after them."""
    found, corpus = [], Corpus.open(run_dir)
    for number in range(rounds):
        round = Run(run_dir).round(number)
        found.append(open_triplets(round, corpus).triplet_digest)
        if trained:
            found.append(load_network(round.next.checkpoint).digest())
    return found


MINER = """
import sys, time
from pathlib import Path
from pipeline import mine
from pipeline.files.layout import Run
while not Run(Path(sys.argv[1])).round(2).manifest.exists():
    mine.main(["--run_dir", sys.argv[1]])
    time.sleep(.5)
"""
TRAINER = """
import sys, time
from pathlib import Path
from pipeline.errors import InputError
from pipeline.files.layout import Run
from trainer import train
while not Run(Path(sys.argv[1])).round(3).checkpoint.exists():
    try:
        train.main(["--run_dir", sys.argv[1]])
    except InputError as error:
        assert "nothing is mined" in str(error)
    time.sleep(.5)
"""


@pytest.mark.slow
def test_a_miner_and_a_trainer_side_by_side_end_as_one_after_the_other(small, tmp_path):
    calm, shared = copied(small, tmp_path / "calm"), copied(small, tmp_path / "shared")
    for _ in range(3):
        assert mine.main(["--run_dir", str(calm)]) == train.main(["--run_dir", str(calm)]) == 0
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(shared)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for code in (MINER, TRAINER)
    ]
    for process in processes:
        _, log = process.communicate(timeout=300)
        assert process.returncode == 0, log
    assert results(shared, 3, trained=True) == results(calm, 3, trained=True)
    assert len(set(results(shared, 3, trained=True))) == 6


def test_in_a_thread_and_in_a_notebook_rounds_are_functions(small_run, small_mined):
    done = []

    def one_round():
        options = MiningOptions()
        done.append(job.mine(small_run, options, PackOptions(), beam_options([], options)).triplets)
        done.append(train_newest(small_run, TrainOptions()).checkpoint)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=one_round)
    thread.start()
    thread.join()
    assert len(done) == 2 and Path(done[1]).exists() and results(small_run, 1) == results(small_mined, 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_role_may_work_beside(small_mined, tmp_path):
    run_dir = copied(small_mined, tmp_path)
    with lock.hold(run_dir, lock.MINER):
        assert train.main(["--run_dir", str(run_dir)]) == 0
        with pytest.raises(Locked):
            mine.main(["--run_dir", str(run_dir)])


IMPORTS = """
import gc, importlib, json, locale, logging, os, pkgutil, random, signal, sys, threading, warnings
import apache_beam, fsspec, google_crc32c, jinja2, keras, msgspec, numba, numpy, psutil, pyarrow.compute
import pyarrow.parquet, PIL.Image, rich.progress, scipy.spatial, sklearn.cluster, sklearn.linear_model, tensorflow
import tyro, upath, apache_beam.runners.worker.sdk_worker_main, sklearn.metrics, sklearn.datasets

def state():
    loggers = {name: logging.getLogger(name) for name in (None, "triplet-miner", "apache_beam", "tensorflow")}
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path), "streams": [str(sys.stdout),
        str(sys.stderr)], "hooks": [str(sys.excepthook), str(threading.excepthook)],
        "loggers": {str(name): [str(found.handlers), str(found.filters), found.level, found.propagate]
                    for name, found in loggers.items()}, "disabled": logging.root.manager.disable,
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        "warnings": [str(found) for found in warnings.filters],
        "threads": sorted(thread.name for thread in threading.enumerate()), "errors": str(numpy.geterr()),
        "random": [hash(random.getstate()), numpy.random.get_state()[1].tolist()],
        "locale": locale.setlocale(locale.LC_ALL),
    }

before, imported = state(), []
for package in ("pipeline", "trainer"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(found.name)
        imported.append(found.name)
after = state()
changed = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
print(json.dumps([len(imported), changed]))
"""


def test_importing_changes_nothing_in_the_process():
    """What TensorFlow, Beam and the others do is done before, by importing them first."""
    done = python(IMPORTS)
    assert done.returncode == 0, done.stderr
    modules, changed = json.loads(done.stdout.splitlines()[-1])
    assert modules > 60 and changed == {}
