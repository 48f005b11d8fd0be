"""`tfds:NAME,label=FEATURE`: a data set that tensorflow-datasets has prepared on disk. Nothing is downloaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import builder_from_files

from pipeline.corpus.sources.fields import choose_fields, kind_of, make_examples, split_fields, unlabelled
from pipeline.corpus.sources.source import PART_ROWS, Example, Rejected, Source
from pipeline.errors import InputError


def open_source(argument: str) -> Source:
    name, declared = split_fields("tfds", argument, ["data_dir", "split"])
    wanted = declared.pop("split", "")
    try:
        builder = builder_from_files(name, data_dir=declared.pop("data_dir", None))
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"tfds:{argument}: no prepared data set of that name. Prepare it with tensorflow-datasets (tfds build "
            f"{name}), say where it is (tfds:{name},data_dir=DIR), or name its config (tfds:{name}/CONFIG)."
        ) from None
    directory = Path(builder.data_dir).absolute()
    splits = wanted.split("+") if wanted else list(builder.info.splits)
    if unknown := {*splits} - {*builder.info.splits}:
        raise InputError(f"tfds:{argument}: no split {', '.join(unknown)}; there are {', '.join(builder.info.splits)}.")
    what, there = f"tfds:{argument}", list(builder.info.features)
    fields = choose_fields(what, declared, there)

    def parts() -> list[Any]:
        return [
            (str(directory), split, start, fields)
            for split in splits
            for start in range(0, builder.info.splits[split].num_examples, PART_ROWS)
        ]

    files = sorted(path for path in directory.iterdir() if path.is_file())
    return Source(
        kind=kind_of(fields), files=files, parts=parts, read=read, unlabelled=unlabelled(what, fields, there)
    )  # fmt: skip


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
        row = {ours: _named(features[theirs], example[theirs]) for ours, theirs in fields.items()}
        yield from make_examples(row, example["tfds_id"].decode(), Path(directory))


def _named(feature: Any, value: Any) -> Any:
    """A class by its name; -1 stands for none."""
    if not isinstance(feature, tfds.features.ClassLabel):
        return value
    return feature.int2str(value) if value >= 0 else None
