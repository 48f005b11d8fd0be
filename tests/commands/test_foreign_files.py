"""A run directory among a user's own files: every command leaves them as they are."""

import os
import socket

import pytest
from corpora import make

from pipeline import embed, ingest, mine, records, report, rounds
from pipeline.files import storage
from pipeline.files.layout import Run
from trainer import evaluate, init, train, warmup

NAMES = [
    ".x.tmp", ".a.1234.deadbeef.tmp.csv", "x.tmp", ".tmp", "a.npy", "corpus.json", "triplets.json", "other.keras",
    "notes.txt", "no suffix", "ä ö.txt", "trainer.py", "pipeline.py", ".lock", "-rf", "plan.json.bak", "0099",
    f".a.{socket.gethostname()}.1.0123abcd.tmp", ".b.another-host.1.0123abcd.tmp.npy", "~", "triplets-00000.tfrecord",
]  # fmt: skip
OURS = f".c.{storage.HOST}.{{}}.0123abcd.tmp.npy"  # half written by a process that is dead


def furnish(folder, outside, dead):
    """Files with all those names, folders with files, links: dangling, to a folder, round a cycle, with our names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).write_text(f"theirs: {name}")
    for name in (".cache.tmp", "data", OURS.format(dead) + ".d"):
        (folder / name / "below").mkdir(parents=True)
        (folder / name / "below" / OURS.format(dead)).write_text("theirs, in a folder of theirs")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "outside").symlink_to(outside)
    (folder / "cycle").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / OURS.format(dead).replace(".c.", ".link.")).symlink_to(outside / "a.txt")


def contents(folder):
    """What lies in a folder, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*"), key=str):
        if path.is_symlink():
            found[path] = os.readlink(path)
        else:
            found[path] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def dead():
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def test_a_users_own_files_stay_and_our_leftovers_go(tmp_path, dead, monkeypatch):
    """In the run directory, in folders of its rounds, and in one with the name of a round that is none."""
    outside, project = tmp_path / "outside", tmp_path / "project"
    outside.mkdir()
    (outside / "a.txt").write_text("outside")
    monkeypatch.chdir(tmp_path)
    project.mkdir()
    monkeypatch.chdir(project)
    run, arguments = Run(project), ["--run_dir", "."]
    for folder in (project, project / "rounds", project / "rounds" / "²", run.round(0).path, run.round(0).train,
                   run.best.parent, run.round(0).checkpoint.parent):  # fmt: skip
        furnish(folder, outside, dead)
    theirs = contents(tmp_path)

    def unharmed(command, *more):
        for folder in (project, run.round(0).path, run.corpus):
            if folder.exists():
                (folder / OURS.format(dead)).write_text("half")
        assert command.main([*arguments, *more]) == 0
        found = contents(tmp_path)
        assert {path: found.get(path, "gone") for path in theirs} == theirs, command.__name__

    for command, *more in (
        (ingest, "--source", "digits"), (init,), (warmup, "--steps", "3"), (mine, "--anchors", "200"), (train,),
        (rounds, "--rounds", "2", "--recipe", "plain"),
    ):  # fmt: skip
        unharmed(command, *more)
        assert not [path for path in project.rglob(OURS.format(dead)) if path not in theirs], command.__name__
    for command, *more in ((evaluate,), (embed, "--out", "x.npz"), (report,)):
        unharmed(command, *more)
    assert records.main(["verify", "."]) == 0
    new = set(os.listdir(project)) - {path.name for path in theirs if path.parent == project}
    assert new - {OURS.format(dead)} == {
        "corpus", "index.html", "plan.json", "x.npz", ".lock-mine", ".lock-train", "baselines-eval.json",
        "baselines-validation.json",
    }  # fmt: skip


def test_a_folder_of_the_users_that_is_called_corpus_is_not_taken(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "texts.txt").write_text("theirs")
    before = contents(tmp_path)
    with pytest.raises(Exception, match="corpus"):
        make(tmp_path, "digits")
    assert contents(tmp_path) == before
