"""Rounds by a plan on disk: stopped and started again, lengthened, refused; the best checkpoint; when they end."""

import json
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import copied
from interrupted import QUICK, at_messages, outcome, stops
from logged import scalars

from pipeline import rounds
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.mining.manifest import TripletsManifest, open_triplets
from pipeline.reporting.results import Best, Epoch, Evaluation, Metrics
from trainer import init
from trainer.measures.evaluation import evaluate_rounds
from trainer.options import TrainOptions, WarmupOptions
from trainer.recipe import SHIPPED, read_recipe
from trainer.rounds import HEAD, Plan, Rounds, Stretch, run_rounds
from trainer.warming import warm_up


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A recipe whose rounds take a second or two."""
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    path.write_text(QUICK)
    return str(path)


@pytest.fixture(scope="module")
def bare(small, tmp_path_factory):
    """`small` without a checkpoint. Not to be changed."""
    run_dir = copied(small, tmp_path_factory.mktemp("bare"))
    shutil.rmtree(run_dir / "rounds")
    return run_dir


@pytest.fixture(scope="module")
def two_rounds(bare, quick, tmp_path_factory):
    """Two rounds, undisturbed. Not to be changed."""
    run_dir = copied(bare, tmp_path_factory.mktemp("two"))
    assert rounds.main(["--run_dir", str(run_dir), "--rounds", "2", "--recipe", quick]) == 0
    return run_dir


def metrics_of(run_dir, number):
    return manifests.read(Run(run_dir).round(number).metrics, Metrics)


def test_each_round_is_mined_with_the_checkpoint_that_the_last_one_trained(two_rounds, quick):
    corpus, run, recipe = Corpus.open(two_rounds), Run(two_rounds), read_recipe(quick)
    digests = [load_network(run.round(number).checkpoint).digest() for number in range(3)]
    assert len(set(digests)) == 3 and not run.round(2).manifest.exists() and not run.round(3).path.exists()
    for number in (0, 1):
        mined, trained = open_triplets(run.round(number), corpus), metrics_of(two_rounds, number)
        assert mined.checkpoint_digest == trained.checkpoint_digest == digests[number]
        assert trained.next_checkpoint_digest == digests[number + 1]
        assert (mined.mining, mined.packing) == (recipe.mining, recipe.packing)
        assert msgspec.convert(trained.options, TrainOptions) == recipe.train
        assert run.round(number).report.exists()
    assert run.index_page.exists()
    rates = [scalars(two_rounds, "learning_rate", number) for number in (0, 1)]
    assert rates[0][0] == pytest.approx(0.001) and rates[1][0] == pytest.approx(0.00055)
    assert (np.diff(rates[0] + rates[1]) < 0).all(), "it falls over both"
    evaluated = manifests.read(run.round(2).evaluation("validation"), Evaluation)
    assert scalars(two_rounds, "validation/map_at_r", 1) == pytest.approx([evaluated.measures["map_at_r"]])
    best = manifests.read(run.best, Best)
    assert load_network(run.best_checkpoint).digest() == digests[best.round] and best.round in (1, 2)


def test_the_same_again_does_nothing_and_more_rounds_add_to_them(two_rounds, quick, tmp_path, capsys):
    run_dir = copied(two_rounds, tmp_path)
    before, kept = outcome(run_dir), {path: path.stat().st_mtime_ns for path in run_dir.glob("rounds/**/*.*")}
    assert rounds.main(["--run_dir", str(run_dir), "--rounds", "2", "--recipe", quick, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert outcome(run_dir) == before and {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [line["round"] for line in told["rounds"]] == [0, 1]
    assert told["why"] == "all 2 rounds are done; more: --rounds 3"
    # Another recipe may follow when a stretch is done; the learning rate begins anew.
    (tmp_path / "other.toml").write_text(QUICK + "[train]\nlearning_rate = 0.002\n")
    call = ["--run_dir", str(run_dir), "--rounds", "3", "--recipe", str(tmp_path / "other.toml")]
    Run(run_dir).round(1).stats.unlink()  # as if mining had been killed right after its manifest was there
    assert rounds.main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[lines.index(HEAD) + 1 :][:3]] == ["0", "1", "2"]
    assert lines[0].endswith("pixels, 8 x 8, without training") and "the rounds began with" in lines[1]
    assert outcome(run_dir)[0][:2] == before[0][:2]
    assert scalars(run_dir, "learning_rate", 2)[0] == pytest.approx(0.002)
    assert metrics_of(run_dir, 2).total_steps == sum(metrics_of(run_dir, number).steps for number in range(3))
    assert [(one.first, one.last) for one in manifests.read(Run(run_dir).plan, Plan).stretches] == [(0, 2), (2, 3)]


def test_stopped_here_and_there_they_end_as_undisturbed_ones(bare, two_rounds, quick, tmp_path):
    run_dir, stopped = copied(bare, tmp_path), 0
    for act in stops(every=3):
        try:
            with at_messages(act):
                assert rounds.main(["--run_dir", str(run_dir), "--rounds", "2", "--recipe", quick]) == 0
            break
        except KeyboardInterrupt:
            stopped += 1
    assert stopped >= 3 and outcome(run_dir) == outcome(two_rounds)


def test_another_recipe_or_patience_under_way_is_refused(small_run, quick, tmp_path):
    plan = Plan(stretches=[Stretch(first=0, last=2, recipe=read_recipe(quick))])
    manifests.write(Run(small_run).plan, plan)
    for other in (["--recipe", "plain"], ["--recipe", quick, "--patience", "3"]):
        with pytest.raises(InputError, match=r"plan.json: rounds 0 to 1 are under way with another recipe or patience"):
            rounds.main(["--run_dir", str(small_run), *other])
    assert manifests.read(Run(small_run).plan, Plan) == plan and not Run(small_run).round(0).manifest.exists()


def handmade(small_mined, run_dir, qualities, distances=None, digests=None):
    """A plan of 9 rounds, of which as many are done; their checkpoints have these MAP@R on the validation split.

    distances: mean ones. The loss is at the margin.
    """
    shutil.copytree(small_mined, run_dir)
    run, mined = Run(run_dir), manifests.read(Run(small_mined).round(0).manifest, TripletsManifest)
    epoch = Epoch(loss=0.199, memory_loss=0.0, active_share=1.0, d_ap=1.0, d_an=1.0, triplets=9)
    for number, quality in enumerate(qualities):
        round = run.round(number)
        done = Metrics(
            round=number, device="CPU", replicas=1, margin=0.2, options={}, steps=1, total_steps=number + 1,
            image_passes=9, triplets_per_image_pass={}, epochs=[epoch], stopped_by="epochs", seconds=1.0,
            checkpoint_digest=f"{number}", next_checkpoint_digest=f"{number + 1}",
        )  # fmt: skip
        manifests.write(round.metrics, done)
        manifests.write(round.manifest, replace(mined, round=number))
        round.report.write_text("a page")
        round.next.checkpoint.parent.mkdir(parents=True)
        round.next.checkpoint.write_bytes(f"checkpoint {number + 1}".encode())
        measures = {"recall_at_1": 0.5, "map_at_r": quality, "mean_distance": (distances or {}).get(number, 1.5)}
        evaluation = Evaluation(
            split="validation", corpus_fingerprint="", checkpoint_digest=f"{number + 1}", measures=measures
        )
        manifests.write(round.next.evaluation("validation"), evaluation)
    return run


def plan_of(run, last, patience=None):
    manifests.write(
        run.plan, Plan(stretches=[Stretch(first=0, last=last, recipe=read_recipe("plain"), patience=patience)])
    )


def test_they_end_after_patience_and_the_best_checkpoint_is_kept(small_mined, tmp_path, capsys):
    """The second of equal ones is no gain."""
    run = handmade(small_mined, tmp_path / "run", [0.5, 0.7, 0.7, 0.6])
    plan_of(run, 9, patience=2)
    call = ["--run_dir", str(run.path), "--rounds", "9", "--recipe", "plain", "--patience", "2"]
    assert rounds.main(call) == 0
    out = capsys.readouterr().out
    assert "no better validation MAP@R for 2 rounds" in out and "round 2's, validation MAP@R 0.700" in out
    assert manifests.read(run.best, Best) == Best(round=2, validation_map_at_r=0.7)
    assert run.best_checkpoint.read_bytes() == b"checkpoint 2"
    assert not run.round(5).path.exists(), "round 4 is neither mined nor trained"


def test_the_best_checkpoint_stays_where_its_rounds_own_is_gone(small_mined, tmp_path):
    run = handmade(small_mined, tmp_path / "run", [0.5, 0.7, 0.6])
    plan_of(run, 3)
    kept = run_rounds(run.path, 3, "plain").best
    shutil.rmtree(run.round(2).checkpoint.parent)  # somebody made room
    assert run_rounds(run.path, 3, "plain").best == kept == Best(round=2, validation_map_at_r=0.7)
    shutil.rmtree(run.round(2).path)
    assert run_rounds(run.path, 3, "plain").best == kept
    assert run.best_checkpoint.read_bytes() == b"checkpoint 2"


def test_a_recipe_may_be_a_path(small_mined, tmp_path):
    run = handmade(small_mined, tmp_path / "run", [0.5, 0.7, 0.7, 0.6])
    plan_of(run, 9, patience=2)
    assert run_rounds(run.path, 9, SHIPPED / "plain.toml", patience=2).best.round == 2


def test_a_collapse_is_said_with_what_to_change(small_mined, tmp_path, caplog):
    """A loss at the margin alone is none. The first round goes on, and says it."""
    run = handmade(small_mined, tmp_path / "run", [0.5, 0.7, 0.1], distances={0: 0.1, 2: 0.1})
    plan_of(run, 3)
    message = r"(?s)round 2: COLLAPSED: .*norm 0.975.*train.learning_rate below 0.001; then.*round 2's"
    with pytest.raises(InputError, match=message):
        rounds.main(["--run_dir", str(run.path), "--rounds", "3", "--recipe", "plain"])
    assert run.best_checkpoint.read_bytes() == b"checkpoint 2"
    young = handmade(small_mined, tmp_path / "young", [0.5], distances={0: 0.1})
    plan_of(young, 1)
    assert rounds.main(["--run_dir", str(young.path), "--rounds", "1", "--recipe", "plain"]) == 0
    assert "round 0: COLLAPSED" in caplog.text


def test_the_best_is_never_a_collapsed_one(small_mined, tmp_path):
    run = handmade(small_mined, tmp_path / "run", [0.5, 0.7, 0.6], distances={1: 0.1})
    plan_of(run, 3)
    assert rounds.main(["--run_dir", str(run.path), "--rounds", "3", "--recipe", "plain"]) == 0
    assert manifests.read(run.best, Best) == Best(round=3, validation_map_at_r=0.6)


def test_without_a_warm_up_it_says_why(bare, quick, tmp_path, caplog):
    run_dir = copied(bare, tmp_path)
    assert init.main(["--run_dir", str(run_dir), "--model", "networks:dropout"]) == 0
    assert rounds.main(["--run_dir", str(run_dir), "--rounds", "1", "--recipe", quick]) == 0
    assert "no warm-up: " in caplog.text and "was there already" in caplog.text


def test_what_is_told_of_a_checkpoint_that_is_gone_does_not_count(small_mined, tmp_path):
    """Someone removed round 2's and trained another: its evaluation is of the old one."""
    run = handmade(small_mined, tmp_path / "run", [0.9, 0.7])
    told = manifests.read(run.round(2).evaluation("validation"), Evaluation)
    manifests.write(run.round(2).evaluation("validation"), replace(told, checkpoint_digest="another"))
    plan_of(run, 2)
    with pytest.raises(InputError, match="is not a Keras model"):  # it is looked at again
        rounds.main(["--run_dir", str(run.path), "--rounds", "2", "--recipe", "plain"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rounds", "0"], "rounds must be at least 1; found 0"), (["--patience", "0"], "patience must be at least 1")],
)
def test_wrong_options_end_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        rounds.main(["--run_dir", "nowhere", *arguments])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_wrong_recipes_are_refused_before_anything_is_done(bare):
    with pytest.raises(InputError, match="--recipe bset: .*one of best, plain"):
        rounds.main(["--run_dir", str(bare), "--recipe", "bset"])
    assert not Run(bare).plan.exists()


def test_rounds_that_were_trained_by_hand_count_and_those_removed_are_not_done_again(small_mined, tmp_path):
    """`--rounds` is a total: with two rounds trained before there was a plan, two of them are nothing to do."""
    run = handmade(small_mined, tmp_path / "run", [0.5, 0.7, 0.6])
    shutil.rmtree(run.round(0).path)  # somebody made room
    call = ["--run_dir", str(run.path), "--rounds", "3", "--recipe", "plain"]
    assert rounds.main(call) == 0
    assert not run.round(0).path.exists() and not run.round(3).manifest.exists()
    state = Rounds(run.path, PipelineOptions([]))
    assert [(one.first, one.last) for one in state.plan(5, read_recipe("plain"), None).stretches] == [(3, 5)]


def test_a_validation_split_without_a_pair_is_said_before_training(tmp_path, quick):
    """A tenth of eight rows a class is one row each."""
    vectors = np.random.default_rng(0).standard_normal((80, 6)).astype(np.float32)
    np.savez(tmp_path / "v.npz", vectors=vectors, labels=np.repeat(np.arange(10), 8).astype(str))
    run = Run(tmp_path / "run")
    Corpus.ingest(f"arrays:{tmp_path}/v.npz", run.path, split_by="example", validation_share=0.1)
    call = ["--run_dir", str(run.path), "--rounds", "1", "--recipe", quick]
    said = f"{run.corpus}: no two rows of the validation split are of one class, so "
    with pytest.raises(InputError, match=f"^--patience 2: {said}no round tells of a gain. Leave --patience out"):
        rounds.main([*call, "--patience", "2"])
    assert not run.plan.exists() and not run.rounds()
    messages: list[str] = []
    with at_messages(messages.append):
        assert rounds.main(call) == 0
    assert messages[0] == f"{said}nothing is measured and the newest checkpoint counts as best"
    assert manifests.read(run.best, Best) == Best(round=1, validation_map_at_r=None)


def test_patience_counts_from_its_own_stretch(small_mined, tmp_path, capsys):
    """The best of the rounds before it is no reason to end at once."""
    run = handmade(small_mined, tmp_path / "run", [0.9, 0.5, 0.6])
    recipe = read_recipe("plain")
    stretches = [Stretch(first=0, last=2, recipe=recipe), Stretch(first=2, last=9, recipe=recipe, patience=2)]
    manifests.write(run.plan, Plan(stretches=stretches))
    with pytest.raises(InputError, match="is not a Keras model"):  # it goes on with round 3, whose checkpoint is none
        rounds.main(["--run_dir", str(run.path), "--rounds", "9", "--recipe", "plain", "--patience", "2"])


def test_what_was_measured_before_the_warm_up_is_not_what_they_began_with(small, tmp_path):
    run_dir = copied(small, tmp_path)
    before = evaluate_rounds(run_dir, (0,), "validation", retrieval_only=True).measures["round 0"]["map_at_r"]
    warm_up(run_dir, WarmupOptions(steps=25))
    begun = run_rounds(run_dir, 1, "plain").begun_with
    now = evaluate_rounds(run_dir, (0,), "validation", retrieval_only=True).measures["round 0"]["map_at_r"]
    assert begun == now > before


def test_a_report_that_meets_a_damaged_file_names_it_in_one_line(two_rounds, quick, tmp_path, caplog):
    run = Run(copied(two_rounds, tmp_path))
    run.round(1).report.unlink()
    run.round(0).stats.write_bytes(run.round(0).stats.read_bytes()[:-9])
    with pytest.raises(InputError, match="stats.json is not a manifest"):
        rounds.main(["--run_dir", str(run.path), "--rounds", "2", "--recipe", quick])
    [told] = [record for record in caplog.records if "round 1 goes without a report" in record.message]
    assert "stats.json is not a manifest" in told.message and not told.exc_info
