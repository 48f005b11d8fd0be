"""Where things lie in a run directory, and what only looks like a round."""

from pipeline.files import storage
from pipeline.files.layout import Run


def test_rounds_are_folders_with_our_names(tmp_path):
    run = Run(tmp_path)
    assert run.rounds() == [] and run.newest_checkpoint() is None
    for name in ("0000", "0002", "10000", "0001", "7", "00003", "²", "٣٣٣٣", "0004.bak", "notes", "-001"):
        (tmp_path / "rounds" / name).mkdir(parents=True)
    assert [found.number for found in run.rounds()] == [0, 1, 2, 10000]
    assert all(found.path.is_dir() for found in run.rounds())


def test_the_newest_is_the_highest_that_has_the_file(tmp_path):
    run = Run(tmp_path)
    for number in (0, 1, 2):
        storage.write_atomically(run.round(number).train / "x", lambda path: path.write_text(""))
    for number in (0, 1):
        storage.write_atomically(run.round(number).checkpoint, lambda path: path.write_text(""))
    assert run.newest_checkpoint() == run.round(0).next
    assert run.newest_mined() is None


def test_the_folders_are_all_that_we_write_into(tmp_path):
    run = Run(tmp_path)
    written = [
        run.corpus_manifest, run.plan, run.best, run.round(0).checkpoint, run.round(0).manifest, run.round(0).metrics,
        run.round(0).embeddings("k") / "a.npy", run.round(0).work("k") / "anchors.npy",
        *(run.round(0).work("k") / name / "a.npz" for name in ("columns", "found", "groups")), run.round(0).report,
    ]  # fmt: skip
    for path in written:
        storage.write_atomically(path, lambda temporary: temporary.write_text(""))
    assert {path.parent for path in written} <= set(run.folders())
