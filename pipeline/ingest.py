"""Any source to a corpus.

python -m pipeline.ingest --run_dir runs/digits --source digits
"""

from dataclasses import dataclass

from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources import SOURCES
from pipeline.process import commands, lock
from pipeline.process.options import Common, Inline, parse_with_beam

DESCRIPTION = "\n".join(
    [
        "Make a corpus of a source:", "", *(f"  {name:<28} {what}" for name, what in SOURCES.items()), "",
        "A corpus that is there is compared with its source.",
    ]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    ingest: Inline[IngestOptions]


def main(argv: list[str]) -> int:
    options, rest = parse_with_beam(Options, "pipeline.ingest", DESCRIPTION, argv)
    from pipeline.corpus.ingest import ingest  # after --help, which needs neither Beam nor TensorFlow
    from pipeline.process.beam import beam_options

    beam = beam_options(rest, options)
    with lock.hold(options.run_dir, lock.MINER):
        ingested = ingest(options.run_dir, options.ingest, beam)
    commands.show(ingested, options.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
