"""Beam's options, engines that are not there or are to stop, and what workers raise."""

import http.server
import importlib.util
import json
import re
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.runners import PipelineRunner

from pipeline.errors import InputError, WrongOption
from pipeline.process.beam import beam_options, run
from pipeline.process.engines import Engine


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
        (["--runner=FlinkRunner", "--flink_job_server_jar=a.jar"], "--flink_job_server_jar a.jar: no such file"),
        (["--runner=PrismRunner", "--prism_location=a"], "--prism_location a: no such file. `make engine-prism`"),
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


class Flink(http.server.BaseHTTPRequestHandler):
    """The part of its REST that is asked: two jobs, of which one is cancelled at the second look after it was asked."""

    def do_GET(self):
        jobs = self.server.jobs
        self.server.looks += jobs["ours"] == "CANCELLING"
        if self.server.looks > 1:
            jobs["ours"] = "CANCELED"
        told = {"jobs": [{"jid": f"id-{name}", "name": name, "state": state} for name, state in jobs.items()]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def do_PATCH(self):
        self.server.asked.append(self.path)
        self.server.jobs["ours"] = "CANCELLING"
        self.send_response(202)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def flink():
    with http.server.HTTPServer(("127.0.0.1", 0), Flink) as server:
        server.jobs, server.asked, server.looks = {"another's": "RUNNING", "ours": "RUNNING"}, [], 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_job_on_flink_is_cancelled_there_and_waited_for(flink, caplog):
    master = f"--flink_master=127.0.0.1:{flink.server_port}"
    given = ["--runner=PortableRunner", "--job_endpoint=embed", "--job_name=ours", master]
    Engine.of(beam_options(given, Options())).cancel(None)
    assert flink.asked == ["/jobs/id-ours?mode=cancel"]
    assert flink.jobs == {"another's": "RUNNING", "ours": "CANCELED"} and not caplog.text


def test_a_flink_that_does_not_answer_is_no_reason_to_be_silent(caplog):
    caplog.set_level("WARNING", "triplet-miner")
    Engine(runner="PortableRunner", job="a-job", master="http://127.0.0.1:1").cancel(None)
    assert "the job a-job may still run on the engine" in caplog.text


@pytest.mark.parametrize("given", ["flink", "FlinkRunner", "FLINKRUNNER", "apache_beam.runners.FlinkRunner"])
def test_a_runner_has_the_names_that_beam_gives_it(given):
    options = PipelineOptions([f"--runner={given}"])
    assert Engine.of(options).runner == "FlinkRunner"


class Cancelled:
    """What Beam returns of a job that its job server calls cancelled."""

    state = "CANCELLED"

    def cancel(self):
        pass


@pytest.mark.parametrize(
    ("runner", "result", "may_run"),
    [
        ("PrismRunner", Cancelled(), False), ("FlinkRunner", Cancelled(), True), ("PortableRunner", Cancelled(), True),
        ("PrismRunner", None, True),
    ],
)  # fmt: skip
def test_a_job_that_may_go_on_is_named(runner, result, may_run, caplog):
    """A job server's word is not enough where it may be Flink's."""
    caplog.set_level("WARNING", "triplet-miner")
    Engine(runner=runner, job="a-job", master="").cancel(result)
    assert ("the job a-job may still run on the engine" in caplog.text) == may_run


def test_a_job_has_the_name_by_which_it_is_cancelled():
    seen = []

    class Recorder(PipelineRunner):
        def run_pipeline(self, pipeline, options):
            seen.append(options.view_as(GoogleCloudOptions).job_name)
            return SimpleNamespace(wait_until_finish=lambda: None)

    options = beam_options([], Options())
    name = Engine.of(options).job
    options.view_as(StandardOptions).runner = Recorder()
    run(options, lambda pipeline: pipeline | beam.Create([1]))
    assert seen == [name] and name.startswith("triplet-miner-")
