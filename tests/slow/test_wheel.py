"""The installed commands, in a user's own project."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WORKERS = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.mark.slow
def test_installed_commands_work_beside_a_users_own_modules(tmp_path):
    """In an environment that sees our dependencies and not this folder; the project's modules have our names."""
    source, project = tmp_path / "source", tmp_path / "project"  # a copy: what an earlier build left would go into it
    for name in ("pipeline", "trainer"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
        [information] = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        told = file.read(information).decode()
        assert any(name.endswith("LICENSE") for name in file.namelist())
    assert "\nName: offline-triplet-miner\n" in told and "\nLicense: Apache-2.0\n" in told.replace("-Expression", "")
    ours = {path.relative_to(source) for folder in ("pipeline", "trainer") for path in (source / folder).rglob("*")}
    assert packed == {str(path) for path in ours if (source / path).is_file()}

    venv.create(tmp_path / "env", with_pip=False)
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(np.__file__).parent.parent) + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env/bin/python"), "install", "-q", "--no-deps"]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, cwd=tmp_path)
    (project / "trainer").mkdir(parents=True)
    for path in (project / "trainer" / "__init__.py", project / "pipeline.py"):
        path.write_text("raise ImportError('a module of the user was imported')\n")

    def run(name, *arguments):
        call = [tmp_path / "env/bin" / f"triplet-{name}", *arguments]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(call, cwd=project, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in ("warmup", "evaluate", "embed"):  # the others are called below
        assert f"{name} [-h]" in run(name, "--help")
    run("ingest", "--run_dir", ".", "--source", "digits")
    run("init", "--run_dir", ".")
    assert "triplets in" in run("mine", "--run_dir", ".", *WORKERS)
    assert "image passes" in run("train", "--run_dir", ".")
    run("rounds", "--run_dir", ".", "--rounds", "2", "--recipe", "plain")
    run("report", "--run_dir", ".")
    assert "everything as listed" in run("records", "verify", ".")
    assert sorted(os.listdir(project)) == [
        ".lock-mine", ".lock-train", "baselines-validation.json", "best", "corpus", "index.html", "pipeline.py",
        "plan.json", "rounds", "trainer",
    ]  # fmt: skip
