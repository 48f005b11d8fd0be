"""The corpus dealt to column blocks, and the order in which anchors visit them: part of what `random` means."""

import numpy as np

from pipeline.triplets.draws import hashes, row_hashes
from pipeline.triplets.rule import Rule

ANCHOR_BLOCK = 256  # anchors that share an order of visiting column blocks
COLUMN_BLOCK = 4096  # rows dealt to one column block on average


def column_block_of(rule: Rule, rows: np.ndarray, blocks: int) -> np.ndarray:
    """int64 [n]: to which of the column blocks each row is dealt, uniformly and by hash alone."""
    share = (row_hashes(rule.key("deal"), rows) >> np.uint64(11)) * 2.0**-53
    return (share * blocks).astype(np.int64)


def column_blocks(rows: int) -> int:
    """How many column blocks a corpus of that many rows is dealt into."""
    return max(1, -(-rows // COLUMN_BLOCK))


def visiting_order(rule: Rule, anchor_block: int, blocks: int) -> np.ndarray:
    """int64 [blocks]: the order in which an anchor block visits the column blocks."""
    numbers = np.arange(blocks)
    return np.argsort(hashes(rule.key("visit"), np.full(blocks, anchor_block), numbers), kind="stable")
