"""Look at the machine and, with --run_dir, at a run directory: what is there, what is wrong, and what to do.

python -m pipeline.doctor --run_dir runs/digits
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from pipeline import command, records, storage
from pipeline.records import InputError

OK, WARN, BAD = "ok", "warn", "BAD"
FREE_BYTES = 2 << 30  # less is worth a word
Finding = tuple[str, str, str]  # one of the above, what was looked at, what was found and what to do


def check_python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield (OK, "python", found) if sys.version_info >= (3, 11) else (BAD, "python", f"{found}; 3.11 is the oldest")


def check_packages() -> Iterator[Finding]:
    """Every package that setup.py asks for, against the range that it states there."""
    try:
        requirements = metadata.requires("triplet-miner") or []
    except metadata.PackageNotFoundError:
        yield BAD, "triplet-miner", "not installed; pip install -e ."
        return
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield BAD, wanted.name, f"not installed; pip install '{wanted}'"
            continue
        fits = wanted.specifier.contains(found, prereleases=True)
        yield (OK if fits else BAD), wanted.name, found if fits else f"{found}; pip install '{wanted}'"


def check_devices() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield OK, "CPU", f"{os.cpu_count()} cores, {memory >> 30} GB memory"
    tf = records.import_tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    if names:
        yield OK, "GPU", ", ".join(names)
    elif os.path.exists("/proc/driver/nvidia/version"):
        yield WARN, "GPU", "there is an NVIDIA driver, TensorFlow sees no GPU; pip install .[gpu]"
    else:
        yield OK, "GPU", "none; training runs on the CPU"


def check_disk(directory: Path) -> Iterator[Finding]:
    while not directory.exists():
        directory = directory.absolute().parent
    free = shutil.disk_usage(directory).free
    text = f"{free / 2**30:,.1f} GB free in {directory}"
    yield (OK, "disk", text) if free >= FREE_BYTES else (WARN, "disk", f"{text}; make room, or use another --run_dir")
    if not os.access(directory, os.W_OK):
        yield BAD, "disk", f"{directory} cannot be written to; mend its permissions, or use another --run_dir"


def check_corpus(run_dir: Path) -> Iterator[Finding]:
    if not (run_dir / "corpus" / "corpus.json").exists():
        yield WARN, "corpus", f"none. Next: python -m pipeline.ingest --run_dir {run_dir} --source ..."
        return
    corpus = records.open_corpus(run_dir)
    for split in map(corpus.split, records.SPLITS):
        records.check_split(split)
        alone = int((split.first_rows[1:] - split.first_rows[:-1] == 1).sum())
        text = f"{split.rows:,} rows of {len(split.labels):,} classes, every checksum right"
        if split.rows == 0 and split.name != "train":
            yield WARN, split.name, f"empty; ingest with --{split.name}_share to see how good a checkpoint is"
        elif alone:
            yield WARN, split.name, f"{text}; {alone:,} classes have one row: no anchor there has a positive"
        else:
            yield OK, split.name, text


def check_rounds(run_dir: Path) -> Iterator[Finding]:
    """Each round's checkpoint and triplets, and what comes next."""
    numbers = sorted(int(name) for name in storage.names(run_dir / "rounds") if name.isdigit())
    if not (run_dir / "corpus" / "corpus.json").exists():
        return
    corpus = records.open_corpus(run_dir)
    for number in numbers:
        checkpoint, has = records.checkpoint_path(run_dir, number), []
        digest = ""
        if checkpoint.exists():
            digest = records.checkpoint_digest(records.load_checkpoint(checkpoint))
            has.append(f"checkpoint {digest[:12]}")
        if records.manifest_path(run_dir, number).exists():
            manifest = records.open_triplets(run_dir, number, corpus)
            has.append(f"{manifest['triplets']:,} triplets, every checksum right")
            if digest != manifest["checkpoint_digest"]:
                other = f"mined with checkpoint {manifest['checkpoint_digest'][:12]}, has {digest[:12] or 'none'}"
                yield BAD, f"round {number}", f"{other}; put that one back"
        yield OK, f"round {number}", ", ".join(has) or "nothing yet"
    mined = records.newest_round(run_dir, records.manifest_path)
    newest = records.newest_round(run_dir, records.checkpoint_path)
    module = "trainer.train" if mined is not None and mined == newest else "pipeline.mine"
    yield OK, "next", f"python -m {module} --run_dir {run_dir}"


def check_lock(run_dir: Path) -> Iterator[Finding]:
    with command.hold(run_dir, "doctor"):
        yield OK, "lock", "free"


def guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; what it raises is one of them."""
    try:
        yield from check()
    except (InputError, OSError) as error:
        yield (WARN if isinstance(error, command.Locked) else BAD), name, str(error)


def main(argv: list[str]) -> int:
    parser = command.Parser("pipeline.doctor", "[--run_dir DIR]", "Check the machine, and a run directory.")
    parser.add_argument("--run_dir", type=storage.location, help="with the corpus and the rounds")
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    run_dir = arguments.run_dir
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": check_python, "packages": check_packages, "devices": check_devices,
    }  # fmt: skip
    if run_dir is None or storage.is_local(run_dir):
        checks["disk"] = lambda: check_disk(run_dir or Path.cwd())
    if run_dir is not None and run_dir.exists():
        checks["lock"] = lambda: check_lock(run_dir)
        checks["corpus"] = lambda: check_corpus(run_dir)
        checks["rounds"] = lambda: check_rounds(run_dir)
    elif run_dir is not None:
        checks["run_dir"] = lambda: iter([(WARN, str(run_dir), "not there yet; ingest makes it")])
    counts = dict.fromkeys((OK, WARN, BAD), 0)
    for name, check in checks.items():
        for verdict, what, text in guarded(name, check):
            counts[verdict] += 1
            print(f"{verdict:<5} {what:<18} {text}", flush=True)
    command.note(doctor=counts)
    print("nothing is wrong" if not counts[BAD] else f"{counts[BAD]} to mend")
    return 4 if counts[BAD] else 0


if __name__ == "__main__":
    command.run(main)
