"""Beam's options, engines that are not there, and what workers raise."""

import importlib.util
import re
from dataclasses import dataclass

import apache_beam as beam
import pytest

from pipeline.errors import InputError, WrongOption
from pipeline.process.beam import beam_options, run


@dataclass(frozen=True)
class Options:
    margin: float = 0.2
    pick: str = "random"
    anchors: int = 0


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("--margn", "--margin"), ("--margn=.3", "--margin"), ("--runer=x", "--runner"), ("--anchor", "--anchors"),
        ("stray", None),
    ],
)  # fmt: skip
def test_an_option_that_is_neither_ours_nor_beams_is_refused(found, meant):
    help = rf"did you mean {meant}\?" if meant else "--help lists what there is"
    for more in ([], ["--runner=DirectRunner"]):
        with pytest.raises(WrongOption, match=rf"unknown option {found}; {help}"):
            beam_options([*more, found], Options())


def test_a_job_server_has_options_that_beam_does_not_know():
    """Those that all but name one of ours are ours."""
    engine = ["--runner=PortableRunner", "--job_endpoint=embed"]
    assert beam_options([*engine, "--parallelism=4"], Options())
    with pytest.raises(WrongOption, match="unknown option --margn; did you mean --margin"):
        beam_options([*engine, "--margn", "4"], Options())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runner=PortableRunner"], "--job_endpoint"),
        (["--runner=PortableRunner", "--job_endpoint=localhost:1"], "answers at --job_endpoint localhost:1"),
        (["--runner=PortableRunner", "--job_endpoint=nonsense"], "--job_endpoint nonsense"),
        (["--runner=FlinkRunner"], "Install a Java 17 runtime"),
        (["--runner=SparkRunner"], "Install a Java 17 runtime"),
        (["--runner=DataflowRunner"], "apache-beam[gcp]"),
    ],
)
def test_an_engine_that_is_missing_is_named(options, said, monkeypatch):
    if "Dataflow" in options[0] and importlib.util.find_spec("apitools"):
        pytest.skip("apache-beam[gcp] is installed")
    monkeypatch.setenv("PATH", "")  # no java
    with pytest.raises(InputError, match=re.escape(said)):
        beam_options(options, Options())


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (InputError("a.png is no image."), InputError, r"^a.png is no image\.$"),
        (OSError(28, "No space left on device", "/run/a"), OSError, r"No space left on device: '/run/a'$"),
        (PermissionError(13, "Permission denied", "/run/a"), OSError, r"Permission denied: '/run/a'$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (ZeroDivisionError("by 0"), ZeroDivisionError, "by 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_step_raises_is_what_the_command_gets(error, expected, message):
    def step(number):
        raise error

    with pytest.raises(expected, match=message):
        run(beam_options([], Options()), lambda pipeline: pipeline | beam.Create([1]) | beam.Map(step))
