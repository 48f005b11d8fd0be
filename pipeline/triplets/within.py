"""Triplets among the rows of one batch: a triplet for each ordered pair of a label, where there is one; the others are
counted."""

from collections.abc import Sequence

import numpy as np

from pipeline.triplets.draws import below, mix
from pipeline.triplets.kernels import compiled
from pipeline.triplets.pairs import first_kind, interval
from pipeline.triplets.rows import Block, Triplets
from pipeline.triplets.rule import Rule
from pipeline.triplets.scan import count_between, nearest_between, pick_between


@compiled
def _select_within(
    embedding, rows, label, content, group, starts, corpus, corpus_starts,
    kinds, shares, nearest, margin, min_distance, min_ratio, kind_key, keys,
):  # fmt: skip
    packs, most, pairs = len(starts) - 1, 0, 0
    for pack in range(packs):
        most = max(most, starts[pack + 1] - starts[pack])
        for a in range(starts[pack], starts[pack + 1]):
            for p in range(starts[pack], starts[pack + 1]):
                pairs += label[a] == label[p] and a != p
    room = corpus.shape[1] + pairs
    place, distance = np.empty((5, room), np.int16), np.empty((2, room), np.float32)
    ends, counts = np.zeros(packs + 1, np.int64), np.zeros(2, np.int64)
    free_to_use, shut_out = np.empty(most, np.float32), np.empty(most, np.float32)
    lo, hi = np.empty(len(kinds), np.float32), np.empty(len(kinds), np.float32)
    count = np.empty(len(kinds), np.int64)
    made, total = 0, shares.sum()
    for pack in range(packs):
        cut = slice(starts[pack], starts[pack + 1])
        row, here, n = rows[cut], label[cut], starts[pack + 1] - starts[pack]
        code, burst = content[cut], group[cut]  # empty where the corpus has no copies or no groups
        scores = np.dot(embedding[cut], embedding[cut].T)
        taken = np.zeros((n, n), np.bool_)
        for t in range(corpus_starts[pack], corpus_starts[pack + 1]):
            for side in range(3):
                place[side, made] = np.flatnonzero(row == corpus[side, t])[0]
            a, p = place[0, made], place[1, made]
            place[3, made], place[4, made] = corpus[3, t], 0
            distance[0, made], distance[1, made] = 2 - 2 * scores[a, p], 2 - 2 * scores[a, place[2, made]]
            taken[a, p] = True
            made += 1
        for a in range(n):
            any_shut = False
            for j in range(n):
                shut = (len(code) > 0 and code[j] == code[a]) or (
                    len(burst) > 0 and burst[a] >= 0 and burst[j] == burst[a]
                )
                other = here[j] != here[a]
                free_to_use[j] = scores[a, j] if other and not shut else -np.inf
                shut_out[j] = scores[a, j] if other and shut else -np.inf
                any_shut |= other and shut
            for p in range(n):
                if a == p or here[a] != here[p] or taken[a, p] or (len(code) > 0 and code[a] == code[p]):
                    continue
                acted = False
                for k in range(len(kinds)):
                    lo[k], hi[k], free = interval(kinds[k], scores[a, p], margin, min_distance, min_ratio)
                    count[k] = count_between(free_to_use[:n], lo[k], hi[k])
                    if any_shut:
                        acted |= count_between(shut_out[:n], lo[k], free) > 0
                    if hi[k] < free:
                        acted |= count_between(free_to_use[:n], max(lo[k], hi[k]), free) > 0
                counts[1] += acted
                first = first_kind(mix(mix(kind_key, row[a]), row[p]), kinds, shares, total)
                chosen = -1
                for attempt in range(2):
                    for k in range(len(kinds)):
                        if chosen < 0 and count[k] > 0 and (attempt == 1 or kinds[k] == first):
                            chosen = k
                if chosen < 0:
                    counts[0] += 1
                    continue
                if nearest:
                    negative = nearest_between(free_to_use[:n], row, lo[chosen], hi[chosen])
                else:
                    h = mix(mix(mix(keys[pack], row[a]), row[p]), kinds[chosen])
                    negative = pick_between(free_to_use[:n], lo[chosen], hi[chosen], below(h, count[chosen]))
                place[0, made], place[1, made], place[2, made] = a, p, negative
                place[3, made], place[4, made] = kinds[chosen], 1
                distance[0, made], distance[1, made] = 2 - 2 * scores[a, p], 2 - 2 * scores[a, negative]
                made += 1
        ends[pack + 1] = made
    return place[:, :made], distance[:, :made], ends, counts


def select_within(
    rule: Rule, block: Block, label: np.ndarray, starts: np.ndarray, corpus: Triplets, corpus_starts: np.ndarray,
    names: Sequence[str],
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, int]]:  # fmt: skip
    """The triplets of packs: those from the corpus first, then one for every other ordered pair of a label.

    Args:
      block: the rows of all packs, one pack after the other. label: int64 [n]. starts: int64 [packs + 1], where
        each pack's rows begin.
      corpus: triplets over the packs' rows; corpus_starts: int64 [packs + 1], where each pack's begin.
      names: of the packs, which are part of the draw.
    Returns:
      anchor, positive, negative (positions in their pack), kind, scope, int16 [T], d_ap, d_an, float32 [T]; int64
      [packs + 1], where each pack's triplets begin; counts `skipped` and `guarded` of pairs.
    """
    none = np.empty(0, np.int64)
    place, distance, ends, counts = _select_within(
        np.ascontiguousarray(block.embedding),
        block.row,
        label,
        none if block.content is None else block.content,
        none if block.group is None else block.group,
        starts,
        np.stack([corpus.anchor, corpus.positive, corpus.negative, corpus.kind.astype(np.int64)]),
        corpus_starts,
        np.array(rule.kinds),
        np.array([share for _, share in rule.shares]),
        rule.pick == "nearest",
        rule.margin,
        rule.min_negative_distance,
        rule.min_negative_ratio,
        rule.key("kind"),
        np.array([rule.key(f"pack-negative/{name}") for name in names], np.uint64),
    )
    columns = dict(zip(("anchor", "positive", "negative", "kind", "scope"), place, strict=True))
    columns |= zip(("d_ap", "d_an"), distance, strict=True)
    return columns, ends, dict(zip(("skipped", "guarded"), counts.tolist(), strict=True))
