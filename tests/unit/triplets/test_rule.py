"""What a rule may be."""

import pytest

from pipeline.triplets.rule import Rule


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 0.0}, {"margin": 5.0}, {"positives": 0}, {"pick": "hardest"}, {"shares": ()},
        {"shares": (("easy", 1.0),)}, {"shares": (("hard", 0.0),)}, {"shares": (("hard", 1.0), ("hard", 1.0))},
        {"min_negative_distance": 4.0}, {"min_negative_ratio": -1.0}, {"min_negative_ratio": 1e300},
        {"margin": float("nan")},
    ],
)  # fmt: skip
def test_wrong_rules_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Rule(**wrong)
