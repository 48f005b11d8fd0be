"""What a user may choose of a corpus. Imports neither Beam nor TensorFlow: `--help` is made from it."""

from dataclasses import dataclass
from typing import Literal

import tyro

from pipeline.errors import InputError, check_types

MAX_TEXT = 100_000  # characters


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Sources, and what of them is held out."""

    source: tyro.conf.UseAppendAction[tuple[str, ...]]
    """NAME:ARGUMENT, one of those listed above; may be given several times"""
    validation_source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """the same, all of it held out for choices"""
    eval_source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """the same, all of it held out for reports"""
    split_by: Literal["auto", "class", "example"] = "auto"
    """hold out whole classes, or examples of each (class from 20 classes up)"""
    validation_share: float = 0.1
    """held out for choices, unless a source says what is"""
    eval_share: float = 0.2
    """held out for reports, unless a source says what is"""
    seed: int = 0
    """of the draw of what is held out"""
    max_rejected: float = 0.1
    """share of bad examples that is too much; counts for a new corpus only"""
    max_text: int = MAX_TEXT
    """characters of a text; a longer one is rejected; counts for a new corpus only"""

    def __str__(self) -> str:
        """The sources, and into which split what is held out of them goes."""
        held_out = (("validation", self.validation_source), ("eval", self.eval_source))
        return " + ".join([*self.source, *(f"{name} {text}" for name, texts in held_out for text in texts)])

    def __post_init__(self) -> None:
        check_types(self)
        if not self.source:
            raise InputError("give --source NAME:ARGUMENT")
        for name in ("validation_share", "eval_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name} must be in [0, 1); found {getattr(self, name)}")
        if self.validation_share + self.eval_share >= 1:
            raise InputError("--validation_share and --eval_share leave nothing to train on")
        if not 0 <= self.max_rejected <= 1:
            raise InputError(f"--max_rejected must be in [0, 1]; found {self.max_rejected}")
