"""The corpus: rows of a source, ordered by (label, id), in three splits.

corpus    reading it: rows by number, in whatever order
options   what a user may choose of one that is made
sources/  one file a kind of source
keys      the order of rows, which are held out, copies and groups
staging   what lies beside a corpus while it is made
manifest  corpus.json
ingest    makes a corpus of a source, or compares the two
passes    the Beam jobs of that
"""
