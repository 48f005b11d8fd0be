"""Command lines: dataclasses in, dataclasses out; what is wrong ends with code 2 and a word of help."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.process.options import Common, Inline, names, parse, parse_with_beam, unknown


@dataclass(frozen=True, kw_only=True)
class Cake:
    eggs: int = 3
    """at least 1"""

    def __post_init__(self):
        if self.eggs < 1:
            raise ValueError(f"eggs must be at least 1; found {self.eggs}")


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    cake: Inline[Cake] = Cake()


def parsed(*argv):
    return parse(Options, "kitchen.bake", "Bake.", list(argv))


def test_underscores_and_dashes_are_the_same():
    expected = Options(run_dir=Path("a"), cake=Cake(eggs=4))
    assert parsed("--run_dir", "a", "--eggs", "4") == parsed("--run-dir=a", "--eggs=4") == expected
    assert parsed("--run_dir", "a", "--json").json and not expected.json


def test_a_run_directory_may_be_in_a_bucket():
    assert str(parsed("--run_dir", "memory://bucket/run").run_dir) == "memory://bucket/run"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "run-dir"), (["--run_dir", "a", "--egg", "1"], "--eggs"), (["--run_dir", "a", "--eggs", "x"], "x"),
        (["--run_dir", "a", "--eggs", "0"], "eggs must be at least 1; found 0"), (["--run_dir", "a", "stray"], "stray"),
    ],
)  # fmt: skip
def test_wrong_options_end_with_code_2_and_say_why(argv, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(*argv)
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_what_is_not_ours_is_beams():
    argv = ["--run_dir", "a", "--runner=FnApiRunner", "--eggs", "2", "--direct_num_workers", "2"]
    options, rest = parse_with_beam(Options, "kitchen.bake", "Bake.", argv)
    assert options.cake.eggs == 2 and rest == ["--runner=FnApiRunner", "--direct_num_workers", "2"]


def test_options_come_from_a_file_one_a_line(tmp_path):
    """A line may have spaces in it, as the JSON of an --environment_config has."""
    config = '--environment_config={"command": "/bin/worker"}'
    (tmp_path / "engine.args").write_text(f"--runner=PortableRunner\n\n  {config}\n--eggs=5\n")
    argv = ["--run_dir", "a", f"@{tmp_path / 'engine.args'}"]
    options, rest = parse_with_beam(Options, "kitchen.bake", "Bake.", argv)
    assert options.cake.eggs == 5 and rest == ["--runner=PortableRunner", config]
    (tmp_path / "image.args").write_bytes(b"\x89PNG")
    for name in ("nowhere.args", "image.args"):
        with pytest.raises(InputError, match=f"@.*{name}: .* Name a file with one option a line"):
            parse_with_beam(Options, "kitchen.bake", "Bake.", [f"@{tmp_path / name}"])


def test_an_unknown_option_is_met_with_the_one_that_was_meant():
    known = names(Options(run_dir=Path("a")))
    assert known == ["--run_dir", "--json", "--eggs"]
    assert unknown("--egs=3", known) == "unknown option --egs=3; did you mean --eggs?"
    assert unknown("--run-dirr", known) == "unknown option --run-dirr; did you mean --run_dir?"
    assert unknown("--x", known) == "unknown option --x; --help lists what there is"
