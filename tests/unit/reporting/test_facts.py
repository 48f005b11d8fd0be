"""What a run directory says of a round."""

import numpy as np
import pytest
from handmade import write_corpus, write_round

from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Round
from pipeline.packs.packs import PackOptions
from pipeline.reporting.facts import facts_of
from pipeline.reporting.results import Evaluation

TRIPLETS = [(0, 1, 2, 0.5, 0.6), (1, 0, 3, 0.5, 0.4), (2, 3, 0, 0.25, 0.5)]


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path, ["a", "a", "b", "b"], np.eye(4, dtype=np.float32))


def test_of_triplets_over_the_corpus_the_share_is_that_of_all_pairs(corpus, tmp_path):
    write_round(tmp_path, [TRIPLETS], pairs=4, no_negative=9)
    facts = facts_of(Round(tmp_path, 0), corpus)
    assert (facts.kinds, facts.pairs, facts.served, facts.spread) == ({"semi-hard": 2, "hard": 1}, 4, 0.75, False)
    assert facts.stats is facts.metrics is None and facts.evaluations == {}


def test_of_spread_packs_it_is_that_of_theirs(corpus, tmp_path):
    write_round(tmp_path, [TRIPLETS], packing=PackOptions(packs="spread"), no_negative=9)
    facts = facts_of(Round(tmp_path, 0), corpus)
    assert (facts.kinds, facts.pairs, facts.served, facts.spread) == ({"semi-hard": 2, "hard": 1}, 12, 0.25, True)


@pytest.mark.parametrize("packs", ["triplets", "spread"])
def test_without_pairs_there_is_no_share(corpus, tmp_path, packs):
    write_round(tmp_path, [], packing=PackOptions(packs=packs))
    assert facts_of(Round(tmp_path, 0), corpus).served is None


def test_of_a_round_that_is_not_there_nothing_is_said(corpus, tmp_path):
    facts = facts_of(Round(tmp_path, 5), corpus)
    assert (facts.manifest, facts.kinds, facts.pairs, facts.served) == (None, {}, 0, None)


def test_an_evaluation_of_another_checkpoint_is_left_out(corpus, tmp_path):
    round = Round(tmp_path, 0)
    for split, digest in (("validation", "another's"), ("eval", "by hand")):
        found = Evaluation(split=split, corpus_fingerprint="", checkpoint_digest=digest, measures={"map_at_r": 0.5})
        manifests.write(round.evaluation(split), found)
    assert set(facts_of(round, corpus).evaluations) == {"validation", "eval"}  # nothing to compare them with
    write_round(tmp_path, [TRIPLETS])
    assert facts_of(round, corpus).evaluations == {"eval": {"map_at_r": 0.5}}


def test_a_damaged_file_is_named(corpus, tmp_path):
    Round(tmp_path, 0).stats.parent.mkdir(parents=True)
    Round(tmp_path, 0).stats.write_text('{"mining_')
    with pytest.raises(InputError, match="stats.json is not a manifest"):
        facts_of(Round(tmp_path, 0), corpus)
