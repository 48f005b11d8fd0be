"""`tfds:NAME,label=FEATURE`: a data set that tensorflow-datasets has prepared on disk. Nothing is downloaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import builder_from_files

from pipeline.corpus.sources.fields import choose_fields, kind_of, make_example, split_fields
from pipeline.corpus.sources.source import PART_ROWS, Example, Rejected, Source
from pipeline.errors import InputError


def open_source(argument: str) -> Source:
    name, declared = split_fields("tfds", argument, ["data_dir"])
    try:
        builder = builder_from_files(name, data_dir=declared.pop("data_dir", None))
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"tfds:{argument}: no prepared data set of that name. Prepare it with tensorflow-datasets (tfds build "
            f"{name}), say where it is (tfds:{name},data_dir=DIR), or name its config (tfds:{name}/CONFIG)."
        ) from None
    directory = Path(builder.data_dir).absolute()
    fields = choose_fields(f"tfds:{argument}", declared, list(builder.info.features))

    def parts() -> list[Any]:
        return [
            (str(directory), split, start, fields)
            for split, info in builder.info.splits.items()
            for start in range(0, info.num_examples, PART_ROWS)
        ]

    files = sorted(path for path in directory.iterdir() if path.is_file())
    return Source(kind=kind_of(fields), files=files, parts=parts, read=read)


def read(part: tuple[str, str, int, dict[str, str]]) -> Iterator[Example | Rejected]:
    directory, split, start, fields = part
    builder = tfds.builder_from_directory(directory)
    features = {theirs: builder.info.features[theirs] for theirs in fields.values()}
    images = {name: tfds.decode.SkipDecoding() for name, of in features.items() if isinstance(of, tfds.features.Image)}
    stop = min(start + PART_ROWS, builder.info.splits[split].num_examples)
    data = builder.as_dataset(
        split=f"{split}[{start}:{stop}]",
        decoders=tfds.decode.PartialDecoding(dict.fromkeys(features, True), decoders=images),
        read_config=tfds.ReadConfig(add_tfds_id=True, try_autocache=False, interleave_cycle_length=1),
    )
    for example in data.as_numpy_iterator():
        row = {
            ours: features[theirs].int2str(example[theirs])
            if isinstance(features[theirs], tfds.features.ClassLabel) else example[theirs]
            for ours, theirs in fields.items()
        }  # fmt: skip
        yield make_example(row, example["tfds_id"].decode(), Path(directory))
