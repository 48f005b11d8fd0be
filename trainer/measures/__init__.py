"""How good embeddings are on held-out rows.

evaluation    every measure of a checkpoint on a split, and the table of them
retrieval     every row queries all others
verification  whether two rows are of one class
baselines     what no network has to beat: the payload itself
"""
