"""Models of every kind through init, mine, train and evaluate, a fresh process each."""

from pathlib import Path

from benchmarks.encoders.commands import CommandFailed, map_at_r, run
from benchmarks.table import Row

HERE = "benchmarks.encoders.models"
TOKENS = "benchmarks.encoders.minilm:preprocess"
IMPORTS = ("--import", HERE)
# What each is, and the options of init beside --model; all of digits, but where it takes texts.
KINDS: dict[str, tuple[str, ...]] = {
    "subclassed": IMPORTS,
    "two_inputs": ("--preprocess", f"{HERE}:image_and_profile"),
    "custom_layer": (*IMPORTS, "--augment", f"{HERE}:noisy"),
    "hub_image": ("--import", "keras_hub"),
    "hub_text": ("--import", "keras_hub", "--preprocess", TOKENS),
}


def every_kind(scratch: Path, folder: Path) -> list[Row]:
    """folder: of BANKING77."""
    through, notes = 0, []
    for name, options in KINDS.items():
        run_dir = scratch / name
        source = f"csv:{folder / 'test.csv'},text=text,label=category" if name == "hub_text" else "digits"
        run("pipeline.ingest", run_dir, "--source", source)
        try:
            run("trainer.init", run_dir, "--model", f"{HERE}:{name}", *options)
            run("pipeline.mine", run_dir, "--anchors", 500)
            run("trainer.train", run_dir)
            [_, after], _ = map_at_r(run_dir, 0, 1)
            through += 1
            notes.append(f"{name} {after:.3f}")
        except CommandFailed as error:
            notes.append(f"{name} FAILED")
            print(error, flush=True)
    what = "kinds of models through init, mine, train, evaluate"
    return [Row(what=what, value=through, bound=len(KINDS), at_least=True, note=f"MAP@R {', '.join(notes)}")]
