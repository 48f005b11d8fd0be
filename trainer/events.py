"""What TensorBoard shows of a round's training."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.summary import create_file_writer, create_noop_writer

from pipeline.files import storage
from pipeline.files.layout import Round


@contextlib.contextmanager
def event_log(round: Round, suffix: str = "") -> Iterator[Any]:
    """A summary writer for TensorBoard's events of a round; in a bucket, which TensorFlow may not know, one that writes
    nothing.

    Raises:
      OSError: if the disk refuses.
    """
    path = round.train / "logs"
    local = storage.is_local(path)
    try:
        writer = create_file_writer(str(path), filename_suffix=suffix or None) if local else create_noop_writer()
        with contextlib.closing(writer):
            yield writer
    except tf.errors.OpError as error:
        _, ours, reason = error.message.partition(str(path))
        if not ours:
            raise
        raise OSError(f"{path}{reason.partition(os.linesep)[0]}") from None
