"""What TensorBoard shows of a round's training."""

from pathlib import Path

import tensorflow as tf

from pipeline.files.layout import Run


def scalars(run_dir: Path, name: str, number: int = 0) -> list[float]:
    """By step."""
    found = {}
    for path in sorted((Run(run_dir).round(number).train / "logs").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            values = {value.tag: float(tf.make_ndarray(value.tensor)) for value in event.summary.value}
            found |= {event.step: values[name]} if name in values else {}
    return [found[step] for step in sorted(found)]
