"""Negatives that a source gives for its pairs: from JSON lines to the triplets in packs, against the definitions."""

import json

import numpy as np
import oracle
import pytest
from conftest import copied, packs_of
from corpora import NO_HOLD_OUT, make

from pipeline import Corpus, InputError, ingest, mine, records
from pipeline.embedding.store import EmbeddingStore
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets
from pipeline.packs.write import SCOPES
from pipeline.reporting.pages import count_tables
from trainer import init


def write_pairs(path, pairs):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return f"jsonl:{path}"


def some_pairs():
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "te") for b in ("ban", "dor", "fis", "gul")]

    def text():
        return " ".join(rng.choice(words, 4))

    pairs = [{"query": text(), "pos": [text(), text()], "neg": [text() for _ in range(n % 4)]} for n in range(40)]
    pairs[1]["pos"][0] = pairs[1]["query"]  # a copy is no positive
    pairs[2]["neg"][0] = pairs[2]["query"]  # its label would be the anchor's
    pairs[3]["neg"][1] = pairs[5]["query"]
    return pairs


@pytest.fixture(scope="module")
def given_run(tmp_path_factory):
    """Ingested, with round 0's checkpoint. Not to be changed."""
    directory = tmp_path_factory.mktemp("given")
    call, source = ["--run_dir", str(directory / "run")], write_pairs(directory / "t.jsonl", some_pairs())
    assert ingest.main([*call, "--source", source, "--validation_share", "0", "--eval_share", "0"]) == 0
    assert init.main(call) == 0
    return directory / "run"


def texts(corpus):
    """Every given triplet as texts."""
    rows = [row["text"] for row in corpus.rows()]
    return [tuple(rows[row] for row in triplet) for triplet in corpus.given_triplets().tolist()]


def test_each_negative_stays_with_the_pair_it_was_given_for(given_run):
    corpus, pairs = Corpus.open(given_run), some_pairs()
    expected = [
        (pair["query"], p, n) for pair in pairs for p in pair["pos"] for n in pair["neg"] if n != pair["query"]
    ]
    assert sorted(texts(corpus)) == sorted(expected)
    assert corpus.manifest.given_negatives == sum(len(pair["neg"]) for pair in pairs)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--negatives", "semi-hard,hard", "--positives", "2", "--pick", "nearest"],
        ["--negatives", "hard", "--min_negative_ratio", "0.9", "--pack_rows", "3"],
        ["--margin", "0.5", "--min_negative_distance", "0.9", "--anchors", "100"],
    ],
    ids=" ".join,
)
def test_valid_ones_are_triplets_and_the_others_are_counted(given_run, tmp_path, capsys, arguments):
    run_dir = copied(given_run, tmp_path)
    assert mine.main(["--run_dir", str(run_dir), *arguments]) == 0
    corpus, round = Corpus.open(run_dir), Run(run_dir).round(0)
    manifest, split = open_triplets(round, corpus), corpus.split("train")
    every = np.arange(split.rows)
    embeddings = EmbeddingStore(round, corpus, manifest.checkpoint_digest).embeddings(every)
    label, d, content = split.class_of(every), oracle.distance(embeddings), split.codes("content", every)

    rule = manifest.mining.rule(0)

    def obeys(a, p, n):
        kinds = [kind for kind, _ in rule.shares]
        allowed = [row for kind in kinds for row in oracle.negatives(kind, rule, d, a, p, label, content)]
        return p in oracle.positives(a, label, content) and n in allowed

    written = [
        tuple(pack["row"][[pack[side][t] for side in ("anchor", "positive", "negative")]].tolist())
        for pack in packs_of(run_dir)
        for t in np.flatnonzero(pack["scope"] == SCOPES.index("corpus"))
    ]
    assert len(set(written)) == len(written) == sum(manifest.counts["corpus"].values()), "each once"
    assert all(obeys(*triplet) for triplet in written)

    triplets = set(map(tuple, corpus.given_triplets().tolist()))
    valid = {triplet for triplet in triplets if obeys(*triplet)}
    if "--anchors" in arguments:  # a part of the given ones, those of the anchors that were drawn
        tried = len(triplets & set(written)) + manifest.skipped["corpus"]["given_triplets_not_valid"]
        assert 0 < tried < len(triplets)
    else:
        assert valid <= set(written)
        assert manifest.skipped["corpus"]["given_triplets_not_valid"] == len(triplets - valid)
    assert 0 < len(valid) < len(triplets)
    assert "given triplets not valid" in capsys.readouterr().out
    outcomes = {outcome: share for outcome, _, share, _ in count_tables(manifest)["corpus"][1]}
    assert outcomes["given_triplets_not_valid"] is None, "they are beside the pairs"
    assert sum(manifest.counts["corpus"].values()) <= manifest.pairs


def test_ingest_says_how_many_there_were_and_what_they_make(tmp_path):
    pairs = [{"query": f"q{n}", "pos": [f"p{n}", f"r{n}"], "neg": [f"n{n}"], "split": "train"} for n in range(4)]
    pairs[3]["split"] = "test"
    made = make(tmp_path / "run", write_pairs(tmp_path / "t.jsonl", pairs), **NO_HOLD_OUT)
    assert "  4 given negatives make 6 triplets in train\n" in str(made)
    assert texts(Corpus.open(tmp_path / "run")) == [(f"q{n}", x, f"n{n}") for n in range(3) for x in (f"p{n}", f"r{n}")]
    again = make(tmp_path / "run", f"jsonl:{tmp_path / 't.jsonl'}", **NO_HOLD_OUT)
    assert again.already and (again.given_negatives, again.given_triplets) == (4, 6)


def test_pairs_of_two_sources_are_not_mixed(tmp_path):
    sources = [
        write_pairs(tmp_path / name / "t.jsonl", [{"query": f"{name} q", "pos": [f"{name} p"], "neg": [f"{name} n"]}])
        for name in ("a", "b")
    ]
    corpus = Corpus.ingest(sources, tmp_path / "run", **NO_HOLD_OUT)
    assert texts(corpus) == [(f"{name} q", f"{name} p", f"{name} n") for name in ("a", "b")]


def test_without_negatives_there_is_no_file(tmp_path):
    pairs = [{"query": f"q{n}", "pos": [f"p{n}"]} for n in range(3)]
    made = make(tmp_path / "run", write_pairs(tmp_path / "t.jsonl", pairs), **NO_HOLD_OUT)
    corpus = Corpus.open(tmp_path / "run")
    assert corpus.manifest.given_triplets is None and corpus.given_triplets().shape == (0, 3)
    assert not (corpus.directory / "given.npy").exists() and "given negatives" not in str(made)
    path = corpus.directory / "corpus.json"
    told = json.loads(path.read_text())
    older = {name: value for name, value in told.items() if not name.startswith("given_") and name != "checksum"}
    path.write_text(json.dumps(older))
    assert Corpus.open(tmp_path / "run").fingerprint == corpus.fingerprint, "as one that was made before"


def test_a_damaged_file_is_refused_and_found(given_run, tmp_path, capsys):
    run_dir = copied(given_run, tmp_path)
    path = run_dir / "corpus" / "given.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="given.npy is not what .*corpus.json lists"):
        Corpus.open(run_dir).given_triplets()
    assert records.main(["verify", str(run_dir)]) == 4
    assert "given.npy is not what" in capsys.readouterr().out
