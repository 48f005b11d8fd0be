"""Records in, embeddings out: the one preprocessing and forward pass of mining, training and evaluation.

    python -m pipeline.embed --run_dir runs/digits --out embeddings.parquet

writes the embeddings with their ids and labels, for an index of vectors or whatever else takes them.
"""

import csv
import functools
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import command, records, storage
from pipeline.progress import Stage, live
from pipeline.records import Corpus, InputError, import_tensorflow, load_checkpoint
from pipeline.selection import to_grid

BATCH = 128
CALLS = 3  # batches under way at once: what one call leaves of the cores, decoding or between layers, another takes
CHUNK_ROWS = 4096  # whose payload is in memory at a time where a whole split is embedded


def decode(features: dict[str, dict[str, Any]], payload: Any, input_shape: tuple[int, ...]) -> Any:
    """Turns payloads into what a network takes.

    Args:
      features: of the corpus; the first one is decoded.
      payload: string [n] of encoded images or of texts, or float32 [n * dim] of vectors.
      input_shape: of one example as the network takes it: (height, width, channels), (dim,), for texts () or (1,).
    Returns:
      float32 [n, *input_shape], pixels 0 to 255, or string for texts. Images of another size are resized, antialiased.
    """
    tf = import_tensorflow()
    spec = next(iter(features.values()))
    if spec["kind"] in ("vector", "text"):
        return tf.reshape(payload, [-1, *input_shape])
    height, width, channels = input_shape
    stored = spec["shape"][:2]
    if None not in stored:
        down, across = _resizing(stored[0], height), _resizing(stored[1], width)

    def decode_one(encoded: Any) -> Any:
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        image = tf.cast(image, tf.float32)
        if None in stored:
            image = tf.image.resize(image, (height, width), antialias=True)
        elif tuple(stored) != (height, width):
            # Plain products: TensorFlow shares a batched one among all cores, which takes twice the time.
            image = tf.ensure_shape(image, (*stored, channels))
            columns = down @ tf.reshape(image, (stored[0], stored[1] * channels))
            rows = tf.transpose(tf.reshape(columns, (height, stored[1], channels)), [0, 2, 1])
            rows = tf.matmul(tf.reshape(rows, (height * channels, stored[1])), across, transpose_b=True)
            image = tf.transpose(tf.reshape(rows, (height, channels, width)), [0, 2, 1])
        return tf.ensure_shape(image, (height, width, channels))

    return tf.map_fn(decode_one, payload, fn_output_signature=tf.float32)


def _resizing(size: int, to: int) -> Any:
    """float32 [to, size]: what tf.image.resize multiplies a column by; as a product it takes a third of the time."""
    tf = import_tensorflow()
    one_a_row = tf.eye(size)[None, :, :, None]
    return tf.image.resize(one_a_row, (to, size), antialias=True)[0, :, :, 0]


def decode_records(features: dict[str, dict[str, Any]], records: Any, input_shape: tuple[int, ...]) -> Any:
    """Corpus records, a string [n] tensor of serialised Examples, to what `decode` gives."""
    tf = import_tensorflow()
    name, spec = next(iter(features.items()))
    if spec["kind"] == "vector":
        parsed = tf.io.parse_example(records, {name: tf.io.FixedLenFeature(spec["shape"], tf.float32)})
    else:
        parsed = tf.io.parse_example(records, {name: tf.io.FixedLenFeature([], tf.string)})
    return decode(features, parsed[name], input_shape)


def network_input_shape(model: Any, features: dict[str, dict[str, Any]], name: Path | str) -> tuple[int, ...]:
    """The network's input shape, checked against the corpus' first feature."""
    feature, spec = next(iter(features.items()))
    kind, inputs = spec["kind"], model.inputs or []
    shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else None
    fits = shape is not None and None not in shape and (inputs[0].dtype == "string") == (kind == "text")
    right = {"image": len(shape or ()) == 3, "text": shape in ((), (1,)), "vector": list(shape or ()) == spec["shape"]}
    if shape is None or not fits or not right[kind]:
        takes = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in inputs) or "no fixed input"
        raise InputError(
            f"{name}: the network takes {takes}, the corpus has {feature} of shape {spec['shape']}. It must take one "
            f"input: [batch, height, width, channels] for images, [batch, dim] for vectors, strings [batch] or "
            f"[batch, 1] for texts."
        )
    return shape


def check_output(model: Any, name: Path | str) -> None:
    """Refuses a network that does not give one vector an example."""
    if not isinstance(model.output_shape, tuple) or len(model.output_shape) != 2:
        raise InputError(
            f"{name}: the network gives {model.output_shape}, expected [batch, dim]: one vector an example. End it "
            f"with a pooling layer or keras.layers.Flatten(), and keras.layers.UnitNormalization()."
        )


def input_spec(features: dict[str, dict[str, Any]], shape: tuple[int, ...], rows: int | None = None) -> Any:
    """The tf.TensorSpec of a batch as `decode` gives it."""
    tf = import_tensorflow()
    is_text = next(iter(features.values()))["kind"] == "text"
    return tf.TensorSpec([rows, *shape], tf.string if is_text else tf.float32)


def divide_cores(threads: int) -> None:
    """Lets the calls under way share so many threads instead of each splitting its layers over all: a tenth less time.

    TensorFlow takes this setting only before it has computed anything: where it has, all stays as it is.
    """
    tf = import_tensorflow()
    with suppress(RuntimeError):
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        tf.config.threading.set_intra_op_parallelism_threads(-(-threads // CALLS))


class Embedder:
    """Embeds corpus records with one checkpoint.

    Batches are cut from the rows given and padded to one size, so that how the work is divided into calls of
    the same rows never changes a result.
    """

    def __init__(self, checkpoint: Path, corpus: Corpus, model: Any = None):
        """model: the checkpoint's, if it is loaded already."""
        tf = import_tensorflow()
        from pipeline.batch_norm import fused

        self.checkpoint = checkpoint
        self.model = load_checkpoint(checkpoint) if model is None else model
        shape = network_input_shape(self.model, corpus.features, checkpoint)
        check_output(self.model, checkpoint)
        self.dim = int(self.model.output_shape[1])

        # Autograph would take half a second to rewrite functions that branch on no tensor.
        @tf.function(input_signature=[tf.TensorSpec([BATCH], tf.string)], autograph=False)  # type: ignore[untyped-decorator]
        def embed_batch(records: Any) -> Any:
            with fused(self.model):
                return self.model(decode_records(corpus.features, records, shape), training=False)

        self._embed_batch = embed_batch.get_concrete_function()  # traced here, once: threads would each do it
        self._calls = ThreadPoolExecutor(CALLS)

    def __call__(self, records: list[bytes], first_row: int = 0) -> np.ndarray:
        """float32 [n, dim], L2-normalised, on the grid. `first_row` only names rows in errors."""
        tf = import_tensorflow()

        def embed(start: int) -> np.ndarray:
            batch = records[start : start + BATCH]
            vectors: np.ndarray = self._embed_batch(tf.constant(batch + [batch[-1]] * (BATCH - len(batch)))).numpy()
            return vectors

        parts = list(self._calls.map(embed, range(0, len(records), BATCH)))
        embeddings = np.concatenate(parts)[: len(records)] if parts else np.empty((0, self.dim), np.float32)
        norm = np.linalg.norm(embeddings, axis=1)
        bad = np.flatnonzero(~(np.abs(norm - 1) < 1e-3))
        if len(bad):
            what = {0: "zero"}.get(norm[bad[0]], f"of length {norm[bad[0]]:.4g}")
            raise InputError(
                f"{self.checkpoint}: {len(bad)} of {len(records)} embeddings are not L2-normalised; rows "
                f"{(bad[:5] + first_row).tolist()}, the first is {'NaN' if np.isnan(norm[bad[0]]) else what}. "
                f"Train from an earlier checkpoint, or end the network with keras.layers.UnitNormalization() "
                f"(--init --normalize appends it)."
            )
        return to_grid(embeddings.astype(np.float32))


# ---- The command. ----

Chunks = Iterator[tuple[np.ndarray, list[dict[str, str]]]]  # float32 [n, dim], and id, label and split of each


def write_npy(path: Path, rows: int, dim: int, chunks: Chunks) -> None:
    """float32 [rows, dim] as .npy, and a .csv beside it with the other columns, row by row."""

    def write(array: Path, table: Path) -> None:
        out = np.lib.format.open_memmap(array, "w+", np.float32, (rows, dim))
        with open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "label", "split"])
            writer.writeheader()
            start = 0
            for embeddings, others in chunks:
                out[start : start + len(others)] = embeddings
                writer.writerows(others)
                start += len(others)
        out.flush()

    storage.write_atomically(
        path, lambda array: storage.write_atomically(path.with_suffix(".csv"), functools.partial(write, array))
    )


def write_npz(path: Path, rows: int, dim: int, chunks: Chunks) -> None:
    """`embeddings` float32 [rows, dim], and `ids`, `labels`, `splits`, as NumPy's .npz."""

    def write(temporary: Path) -> None:
        columns: dict[str, list[str]] = {"id": [], "label": [], "split": []}
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
            with file.open("embeddings.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
                np.lib.format.write_array_header_1_0(member, header)
                for embeddings, others in chunks:
                    member.write(embeddings.astype("<f4").tobytes())
                    for name, column in columns.items():
                        column += [other[name] for other in others]
            for name, column in columns.items():
                with file.open(f"{name}s.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(column), allow_pickle=False)

    storage.write_atomically(path, write)


def write_parquet(path: Path, rows: int, dim: int, chunks: Chunks) -> None:
    """Columns id, label, split and embedding, a list of `dim` float32, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = [(name, pa.string()) for name in ("id", "label", "split")]
    schema = pa.schema([*text, ("embedding", pa.list_(pa.float32(), dim))])

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema) as writer:
            for embeddings, others in chunks:
                column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), dim)
                values = [[other[name] for other in others] for name, _ in text]
                writer.write_table(pa.table([*values, column], schema=schema))

    storage.write_atomically(path, write)


WRITERS: dict[str, Callable[[Path, int, int, Chunks], None]] = {
    ".npy": write_npy, ".npz": write_npz, ".parquet": write_parquet,
}  # fmt: skip


def embed_splits(embedder: Embedder, corpus: Corpus, splits: Sequence[str]) -> Chunks:
    """Whole splits, CHUNK_ROWS at a time, in order of their rows."""
    for name in splits:
        split = corpus.split(name)
        records.check_split(split)
        for start in range(0, split.rows, CHUNK_ROWS):
            serialised = split.read(np.arange(start, min(start + CHUNK_ROWS, split.rows)))
            examples = map(records.parse_example, serialised)
            others = [{"id": e["id"][0].decode(), "label": e["label"][0].decode(), "split": name} for e in examples]
            yield embedder(serialised, start), others


def main(argv: list[str]) -> int:
    parser = command.Parser(
        "pipeline.embed", "--run_dir DIR --out FILE [options]", "Write embeddings with their ids and labels."
    )
    parser.add_argument("--run_dir", type=storage.location, required=True, help="with the corpus and the rounds")
    parser.add_argument(
        "--out", type=storage.location, required=True, metavar="FILE",
        help="ends in .npy (ids and labels in a .csv beside it), .npz or .parquet",
    )  # fmt: skip
    parser.add_argument("--split", choices=records.SPLITS, help="which rows (all)")
    parser.add_argument("--round", type=int, help="whose checkpoint (the newest)")
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    run_dir, out = arguments.run_dir, arguments.out
    if out.suffix not in WRITERS:
        raise InputError(f"--out {out}: expected a name that ends in {', '.join(WRITERS)}")
    corpus = records.open_corpus(run_dir)
    splits = [arguments.split] if arguments.split else list(records.SPLITS)
    rows = sum(corpus.split(name).rows for name in splits)
    number = records.newest_round(run_dir, records.checkpoint_path) if arguments.round is None else arguments.round
    if number is None:
        raise InputError(f"{run_dir} has no checkpoint. Make one: python -m trainer.train --run_dir {run_dir} --init")
    checkpoint = records.checkpoint_path(run_dir, number)
    divide_cores(os.cpu_count() or 1)
    embedder = Embedder(checkpoint, corpus)
    done = 0

    def counted() -> Chunks:
        nonlocal done
        for embeddings, others in embed_splits(embedder, corpus, splits):
            yield embeddings, others
            done += len(others)

    with live(Stage("embed", "rows", rows, lambda: done)):
        WRITERS[out.suffix](out, rows, embedder.dim, counted())
    command.note(rows=rows, dim=embedder.dim, out=str(out))
    print(f"{rows:,} embeddings of {embedder.dim} numbers, {' + '.join(splits)}, with {checkpoint}\n  {out}")
    return 0


if __name__ == "__main__":
    command.run(main)
