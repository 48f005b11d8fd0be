"""Bytes on a disk or in a bucket; knows no triplet.

storage    paths, local or remote; writing so that readers see all of a file or nothing
tfrecords  TFRecord files, tf.train.Example
manifests  JSON with types: what every file of a run directory says of itself
layout     where everything lies in a run directory
"""
