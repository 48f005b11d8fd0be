"""Which triplets are selected, as words of a command line."""

import pytest

from pipeline.mining.options import MiningOptions, parse_shares, shown


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("hard", (("hard", 1.0),)),
        ("semi-hard, hard", (("semi-hard", 1.0), ("hard", 1.0))),
        ("semi-hard:3,hard:.5", (("semi-hard", 3.0), ("hard", 0.5))),
    ],
)
def test_kinds_with_shares(text, shares):
    assert parse_shares(text) == shares == parse_shares(shown(shares))


def test_shares_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="expected kinds with shares, as semi-hard:3,hard:1; found 'hard:x'"):
        parse_shares("hard:x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0}, "margin must be above 0"),
        ({"negatives": (("easy", 1.0),)}, "kinds out of semi-hard, hard"),
        ({"anchors": 0}, "anchors must be at least 1; found 0"),
    ],
)
def test_options_out_of_their_range_are_refused_when_they_are_made(options, message):
    with pytest.raises(ValueError, match=message):
        MiningOptions(**options)


def test_a_rule_is_the_options_of_a_round():
    rule = MiningOptions(margin=0.3, pick="nearest", positives=2, seed=4).rule(7)
    assert (rule.margin, rule.pick, rule.positives, rule.seed, rule.round) == (0.3, "nearest", 2, 4, 7)
    assert MiningOptions().rule(0, "nearest").pick == "nearest" and MiningOptions().rule(0).pick == "random"
