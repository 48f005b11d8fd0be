"""What a triplet is, and the exact scan that finds the negatives. NumPy, and numba with a product of SciPy's BLAS;
on an accelerator Keras.

Distances are squared Euclidean distances of L2-normalised embeddings, d = 2 - 2 s with s = a.b, so the code
compares similarities s. Stored embeddings are multiples of 2^-11 (`rows.to_grid`): every product and sum is exact
in float32, and no tile size, thread count or order of summing changes a comparison.

- positive: another row of the anchor's label, and not a copy of it (equal content).
- semi-hard negative of (a, p): another label and d_ap < d_an < d_ap + margin (FaceNet, section 3.2,
  https://arxiv.org/abs/1503.03832).
- hard negative of (a, p): another label and d_an <= d_ap.

Each is an interval lo < s <= hi of similarities, and a scan fills *slots*: one interval of one anchor each.
Rows are ordered by label, so the anchor's own class is one range of rows to leave out.

rule     which triplets a round holds: kinds, pick, margin, guards
draws    hashes in place of random numbers
rows     blocks of rows, pairs, what a scan found, triplets; the grid
pairs    positives, and the interval that each pair's negative must lie in
columns  how the corpus is dealt to blocks, and in which order an anchor visits them
scan     all anchors against all rows
device   the same on an accelerator: keras.ops, compiled by XLA
given    triplets that the source gives, of which the valid ones are taken
within   triplets among the rows of one batch
kernels  how compiled code runs
arrays   all of it on arrays in memory
"""
