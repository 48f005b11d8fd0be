"""Triplets that a source gives: those whose negative a scan might have chosen for the pair."""

import numpy as np

from pipeline.triplets.pairs import intervals
from pipeline.triplets.rows import Block, Triplets
from pipeline.triplets.rule import Rule


def valid_triplets(rule: Rule, anchor: Block, positive: Block, negative: Block) -> Triplets:
    """Of triplets given by their rows, those that the rule allows, in order.

    Args:
      anchor, positive, negative: of each triplet; the first two of one label, the third of another.
    """
    s_ap, s_an = (np.einsum("nd,nd->n", anchor.embedding, other.embedding) for other in (positive, negative))
    pair = np.where(_equal(anchor.content, positive.content), -1, positive.row)  # a copy is no positive
    kind = np.full(len(pair), -1, np.int8)
    for code in rule.kinds:
        guards = rule.min_negative_distance, rule.min_negative_ratio
        lo, hi, _ = intervals(code, pair[:, None], s_ap[:, None], rule.margin, *guards)
        kind[(lo[:, 0] < s_an) & (s_an <= hi[:, 0])] = code
    kind[_equal(anchor.content, negative.content) | _equal(anchor.group, negative.group)] = -1
    triplets = Triplets(
        anchor=anchor.row, positive=positive.row, negative=negative.row, kind=kind, d_ap=2 - 2 * s_ap, d_an=2 - 2 * s_an
    )
    return triplets.take(kind >= 0)


def _equal(codes: np.ndarray | None, others: np.ndarray | None) -> np.ndarray | bool:
    """bool [n]: where both have the same code; False for no codes at all."""
    return False if codes is None or others is None else (codes >= 0) & (codes == others)
