"""Whether the ranges in setup.py hold: the loop on digits with the lowest versions, two of Keras, and the locked ones.

    make test-versions
    make test-versions ARGS="--only lowest --keep"

uv makes an environment for each, installs a wheel of this checkout into it and removes it afterwards. Only binary
packages are taken: a lower bound that needs a compiler is none.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).parent / "uv"
ENVIRONMENTS = {  # which versions of those in the ranges, and constraints
    "lowest": ("lowest-direct", ""),
    "keras-3.12": ("highest", "keras==3.12.*"),
    "keras-3.13": ("highest", "keras==3.13.*"),
    "locked": ("highest", (ROOT / "requirements" / "default.lock").read_text()),
}
LOOP = (
    "pipeline.ingest --source digits", "trainer.init", "pipeline.mine", "trainer.train",
    "pipeline.rounds --rounds 2", "trainer.evaluate", "pipeline.embed --out embeddings.parquet",
)  # fmt: skip
MAP_AT_R = 0.9  # at least, after two rounds: .96 as a rule, .59 untrained
VERSIONS = """
import json, platform
from importlib.metadata import requires, version
from packaging.requirements import Requirement
names = [wanted.name for wanted in map(Requirement, requires("offline-triplet-miner")) if not wanted.marker]
print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in names}))
"""


class Failed(Exception):
    """The command, and the last lines of what it printed."""


def call(*command: object, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise Failed(f"exit code {done.returncode} of {' '.join(map(str, command))}\n{last}")
    return done.stdout


def install(name: str, environment: Path, scratch: Path) -> None:
    """The packages, then a wheel of a copy of this checkout, whose build/ may hold modules that are gone."""
    source, constraints, packages = scratch / "source", scratch / "constraints.txt", scratch / "packages.txt"
    for package in ("pipeline", "trainer"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    resolution, constraint = ENVIRONMENTS[name]
    constraints.write_text(constraint)
    which, where = ("--resolution", resolution, "-c", constraints), ("--python", environment)
    call(UV, "venv", "--clear", "--python", sys.executable, environment)
    call(UV, "pip", "compile", *where, *which, source / "setup.py", "-o", packages)
    call(UV, "pip", "install", *where, "--only-binary", ":all:", "-r", packages)
    call(UV, "pip", "install", *where, "--no-deps", source)
    call(UV, "pip", "check", *where)


def loop(python: Path, scratch: Path) -> float:
    """Runs it. Returns MAP@R of the eval split."""
    for step in LOOP:
        module, *arguments = step.split()
        call(python, "-m", module, "--run_dir", "run", *arguments, cwd=scratch)
    newest = max(scratch.glob("run/rounds/*/evaluation-eval.json"))
    return float(json.loads(newest.read_text())["measures"]["map_at_r"])


def prove(name: str, keep: bool) -> dict[str, str]:
    """A column of the table."""
    environment, began = ROOT / ".venv-versions" / name, time.monotonic()
    column: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            install(name, environment, Path(scratch))
            column |= json.loads(call(environment / "bin/python", "-c", VERSIONS, cwd=Path(scratch)))
            quality = loop(environment / "bin/python", Path(scratch))
            column |= {"MAP@R": f"{quality:.3f}", "result": "ok" if quality >= MAP_AT_R else f"below {MAP_AT_R}"}
    except Failed as failed:
        print(f"{name}: {failed}", flush=True)
        column["result"] = "FAILED"
    finally:
        if not keep:
            shutil.rmtree(environment, ignore_errors=True)
    return column | {"seconds": f"{time.monotonic() - began:.0f}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS), help="which (all)")
    parser.add_argument("--keep", action="store_true", help="leave them in .venv-versions")
    arguments = parser.parse_args()
    columns = {}
    for name in arguments.only:
        columns[name] = prove(name, arguments.keep)
        print(f"{name}: {columns[name]['result']}, {columns[name]['seconds']} s", flush=True)
    heads = dict.fromkeys(head for column in columns.values() for head in column)
    print(f"\n{'':<20}" + "".join(f"{name:>14}" for name in columns))
    for head in heads:
        print(f"{head:<20}" + "".join(f"{column.get(head, '-'):>14}" for column in columns.values()))
    return int(any(column["result"] != "ok" for column in columns.values()))


if __name__ == "__main__":
    sys.exit(main())
