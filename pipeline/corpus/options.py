"""What a user may choose of a corpus. Imports neither Beam nor TensorFlow: `--help` is made from it."""

from dataclasses import dataclass

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """A source, and what of it is held out."""

    source: str
    """NAME:ARGUMENT, one of those listed above"""
    validation_share: float = 0.1
    """held out for choices"""
    eval_share: float = 0.2
    """held out for reports"""
    seed: int = 0
    """of the draw of what is held out"""
    max_rejected: float = 0.1
    """share of bad examples that is too much"""

    def __post_init__(self) -> None:
        for name in ("validation_share", "eval_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name} must be in [0, 1); found {getattr(self, name)}")
        if self.validation_share + self.eval_share >= 1:
            raise InputError("--validation_share and --eval_share leave nothing to train on")
        if not 0 <= self.max_rejected <= 1:
            raise InputError(f"--max_rejected must be in [0, 1]; found {self.max_rejected}")
