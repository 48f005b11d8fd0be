"""`python -m pipeline.ingest`: options in, summary out, exit codes."""

import json
import re
import subprocess
import sys

import pytest
from corpora import write_images

from pipeline import ingest
from pipeline.errors import InputError, Locked
from pipeline.process import lock


def test_the_command_on_real_images(tmp_path):
    write_images(tmp_path / "source", classes=25)
    call = ["-m", "pipeline.ingest", "--run_dir", tmp_path / "run", "--source", f"images:{tmp_path / 'source'}"]
    done = subprocess.run([sys.executable, *map(str, call)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "split by class" in done.stdout and "next: python -m trainer.init" in done.stdout
    assert re.search(r"train +68 rows +17 classes\n +validation +8 rows", done.stdout), done.stdout


def test_json_and_either_spelling_of_an_option(tmp_path, capsys):
    call = ["--run-dir", str(tmp_path / "run"), "--source", "digits", "--eval-share", "0.3", "--json"]
    assert ingest.main(call) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"train": 1078, "validation": 179, "eval": 540} and told["already"] is False
    assert ingest.main(["--run_dir", str(tmp_path / "run"), "--source", "digits", "--eval_share", "0.3"]) == 0
    assert capsys.readouterr().out.startswith("already ingested; nothing to do\ncorpus of digits: image 8 x 8 x 1")


@pytest.mark.parametrize("option", [["--eval_share", "1.5"], ["--eval_share", "much"], []])
def test_a_wrong_option_ends_with_code_2(tmp_path, capsys, option):
    source = ["--source", "digits"] if option else []
    with pytest.raises(SystemExit) as stopped:
        ingest.main(["--run_dir", str(tmp_path / "run"), *source, *option])
    assert stopped.value.code == 2 and not (tmp_path / "run").exists()


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown option --eval_sare; did you mean --eval_share?"):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", "digits", "--eval_sare", "0.3"])


def test_a_run_directory_that_is_held_is_left_alone(tmp_path):
    with lock.hold(tmp_path, lock.MINER), pytest.raises(Locked):
        ingest.main(["--run_dir", str(tmp_path), "--source", "digits"])


def test_help_says_which_options_an_existing_corpus_is_not_compared_with(capsys):
    with pytest.raises(SystemExit):
        ingest.main(["--help"])
    told = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for option in ("--max-rejected FLOAT share of bad", "--max-text INT characters"):
        assert re.search(f"{option}[^(]*; counts for a new corpus only", told), told


def test_help_lists_the_sources_and_imports_neither_beam_nor_tensorflow():
    code = (
        "import sys; from pipeline import ingest\n"
        "try: ingest.main(['--help'])\n"
        "except SystemExit: print([m for m in ('tensorflow', 'apache_beam', 'pyarrow', 'PIL') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert told.endswith("\n[]\n") and "csv:FILE,label=COLUMN" in told
