"""The project's commands, each in a process of its own, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class CommandFailed(Exception):
    """Its text: the command, and the end of what it said."""


def run(module: str, run_dir: Path, *options: object) -> Any:
    """What `python -m MODULE --run_dir RUN_DIR --json OPTIONS` prints. Raises CommandFailed."""
    command = ["-m", module, "--run_dir", str(run_dir), "--json", *map(str, options)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise CommandFailed(f"python {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def map_at_r(run_dir: Path, *rounds: object) -> tuple[list[float], dict[str, float]]:
    """On the eval split: of each round's checkpoint (none named: the best), and of each baseline by its name."""
    options = ["--round", *rounds] if rounds else []
    found = run("trainer.evaluate", run_dir, "--retrieval_only", *options)
    measures, baselines = found["measures"], found["baselines"]
    return [row["map_at_r"] for row in measures.values()], {k: row["map_at_r"] for k, row in baselines.items()}
