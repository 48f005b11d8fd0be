"""Look at what is on disk.

    python -m pipeline.records inspect FILE              a table of a TFRecord file's first records
    python -m pipeline.records verify DIR                counts and checksums against the manifests below DIR
    python -m pipeline.records export DIR --to FILE      triplets with ids, texts and distances for others
"""

import tyro

from pipeline.process import commands
from pipeline.process.options import File, Place


def inspect(file: tyro.conf.Positional[File], limit: int = 3) -> int:
    """A table of a TFRecord file's first records.

    Args:
      limit: records to show.
    """
    from pipeline.reporting.inspection import table

    print(table(file, limit))
    return 0


def verify(directory: tyro.conf.Positional[Place]) -> int:
    """Counts and checksums against the manifests below a directory."""
    from pipeline.reporting.inspection import problems

    found = list(problems(directory))
    print("\n".join([*found, f"{len(found)} problems"]) if found else "everything as listed")
    return 4 if found else 0


def export(run_dir: tyro.conf.Positional[Place], to: File, round: int | None = None) -> int:
    """Triplets with ids, texts and distances, a row each, as .jsonl or .parquet.

    Args:
      to: the file; its ending says which.
      round: which (the newest that is mined).
    """
    from pipeline.mining.export import export_triplets

    print(export_triplets(run_dir, to, round))
    return 0


def main(argv: list[str]) -> int:
    return tyro.extras.subcommand_cli_from_dict(
        {"inspect": inspect, "verify": verify, "export": export}, prog="python -m pipeline.records", args=argv,
        description="Look at what is on disk.",
    )  # fmt: skip


if __name__ == "__main__":
    commands.run(main)
