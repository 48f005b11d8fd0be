"""What the keys of a corpus come to, by loops over dicts: what pipeline.corpus.keys is compared with."""

import hashlib
from collections import Counter, defaultdict

from pipeline.corpus.keys import SPLIT_BY_CLASS_FROM
from pipeline.corpus.manifest import SPLITS
from pipeline.triplets.draws import draw_key


def order(rows):
    """(those kept, by label and id; what is rejected as (id, reason)) of vectors' keys, dicts by the names of KEYS."""
    rejected, first, again = [], {}, []
    staged = sorted(rows, key=lambda row: (row["part"], row["offset"]))
    rejected += [(row["id"], row["reason"]) for row in staged if row["reason"]]
    for row in staged:
        if not row["reason"]:
            if row["id"] in first:
                again.append(row)
            else:
                first[row["id"]] = row
    again.sort(key=lambda row: (row["id"], row["part"], row["offset"]))
    rejected += [(row["id"], "the id was there before; the first is kept") for row in again]
    kept = sorted(first.values(), key=lambda row: (row["label"], row["id"]))
    if kept:
        [(most, _)] = Counter(row["shape"][0] for row in kept).most_common(1)  # of as frequent ones, the first
        for row in kept:
            if row["shape"][0] != most:
                rejected.append((row["id"], f"vector of {row['shape'][0]} numbers, most have {most}"))
        kept = [row for row in kept if row["shape"][0] == most]
    return kept, rejected


def split(kept, options):
    """(split of each row, by what rows were drawn)."""
    given = [SPLITS.index(row["split"] or "train") for row in kept]
    free = [i for i, code in enumerate(given) if code == 0]
    told = {SPLITS[code] for code in given if code}
    validation, evaluation = (0.0 if name in told else getattr(options, f"{name}_share") for name in SPLITS[1:])
    to_train, held = {kept[i]["label"] for i in free}, {row["label"] for row in kept if row["split"] in SPLITS[1:]}
    by = options.split_by
    if by == "auto" and held:
        by = "example" if 2 * len(held & to_train) > len(held) else "class"
    elif by == "auto":
        by = "class" if len(to_train) >= SPLIT_BY_CLASS_FROM else "example"
    key = str(draw_key(options.seed, 0, "split")).encode()

    def cut(names):
        digests = [hashlib.blake2b(name, digest_size=8, key=key).digest() for name in names]
        size, placed = len(names), []
        for digest in digests:
            place = sum(other < digest for other in digests)
            held_out = place < round((validation + evaluation) * size)
            placed.append(1 if place < round(validation * size) else 2 if held_out else 0)
        return placed

    if by == "class":
        classes = sorted(to_train)
        drawn = dict(zip(classes, cut(classes), strict=True))
        return [code or drawn[row["label"]] for row, code in zip(kept, given, strict=True)], by
    leader = {}
    for i in free:
        reached, left = {i}, [i]
        while left:
            one = kept[left.pop()]
            joined = {j for j in free if kept[j]["sha256"] == one["sha256"]}
            joined |= {j for j in free if one["group"] is not None and kept[j]["group"] == one["group"]}
            left += joined - reached
            reached |= joined
        leader[i] = min(reached)
    drawn = {}
    for label in to_train:
        own = [i for i in free if kept[i]["label"] == label]
        drawn |= dict(zip(own, cut([kept[leader[i]]["id"] for i in own]), strict=True))
    return [code or drawn[leader[i]] for i, code in enumerate(given)], by


def describe(rows):
    """A split's rows as (part, offset, length, bits, content, group), its labels, first_rows, copies and conflicts."""
    content, group, index = {}, {}, []
    for number, row in enumerate(rows):
        first = content.setdefault(row["sha256"], number)
        code = -1 if row["group"] is None else group.setdefault(row["group"], len(group))
        bits = -1 if row["bits"] is None else row["bits"]
        index.append((row["part"], row["offset"], row["length"], bits, first, code))
    names = [row["label"] for row in rows]
    labels = sorted(set(names))
    return {
        "index": index, "labels": [label.decode() for label in labels],
        "first_rows": [*map(names.index, labels), len(rows)],
        "copies": sum(row[4] != number for number, row in enumerate(index)),
        "label_conflicts": sum(rows[row[4]]["label"] != rows[n]["label"] for n, row in enumerate(index)),
    }  # fmt: skip


def leaks(train, held_out):
    """How many rows of a split have a copy, or a row of their group, in train."""
    return sum(
        any(row["sha256"] == other["sha256"] or (row["group"] or 0) == other["group"] for other in train)
        for row in held_out
    )


def cut(lengths, shard_rows, shard_bytes):
    """How many rows each shard gets."""
    sizes, total = [], 0
    for length in lengths:
        if sizes and sizes[-1] < shard_rows and total + length <= shard_bytes:
            sizes[-1], total = sizes[-1] + 1, total + length
        else:
            sizes, total = [*sizes, 1], length
    return sizes


def triplets(train):
    """Each anchor of a pair with its positives and its negatives of another label."""
    sides = defaultdict(list)
    for number, row in enumerate(train):
        if row["side"]:
            sides[row["id"].rpartition(b"/")[0], row["side"]].append(number)
    return sorted(
        (anchor, positive, negative)
        for (pair, side), anchors in list(sides.items()) if side == "anchor" for anchor in anchors
        for positive in sides[pair, "positive"] for negative in sides[pair, "negative"]
        if train[anchor]["label"] != train[negative]["label"]
    )  # fmt: skip
