"""Command lines made from frozen dataclasses by tyro: `--run_dir` and `--run-dir` are the same, --help is free."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from pipeline.errors import InputError
from pipeline.files.storage import location

T = TypeVar("T")


def from_text(metavar: str, parse: Callable[[str], Any], text: Callable[[Any], str] = str) -> Any:
    """For an annotation: how one word of a command line becomes a value, and how a default is shown."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=lambda words: parse(words[0]), is_instance=lambda _: True,
        str_from_instance=lambda value: [text(value)],
    )  # fmt: skip


Place = Annotated[Path, from_text("DIR", location)]
File = Annotated[Path, from_text("FILE", location)]
ROUND = from_text("N|best", lambda text: text if text == "best" else int(text))
RoundName = Annotated[int | str, ROUND]
Inline = Annotated[T, tyro.conf.OmitArgPrefixes]  # its fields are options like the others


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    run_dir: Place
    """with the corpus and the rounds"""
    json: bool = False
    """print the result as JSON"""


def parse(kind: type[T], module: str, description: str, argv: Sequence[str]) -> T:
    """The options of a command; exits with code 2 and says why if they are wrong."""
    config = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(kind, prog=f"python -m {module}", description=description, args=argv, config=config)


def parse_with_beam(kind: type[T], module: str, description: str, argv: Sequence[str]) -> tuple[T, list[str]]:
    """The same, and what is left over: options of Beam's. `@FILE` stands for the options in a file, one a line."""
    given = [line for argument in argv for line in (_lines(argument[1:]) if argument[:1] == "@" else [argument])]
    options, rest = tyro.cli(
        kind, prog=f"python -m {module}", description=f"{description} Apache Beam's options are taken too.", args=given,
        config=(tyro.conf.FlagCreatePairsOff,), return_unknown_args=True,
    )  # fmt: skip
    return options, list(rest)


def _lines(path: str) -> list[str]:
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"@{path}: {error}. Name a file with one option a line.") from None


def names(options: Any) -> list[str]:
    """Of the options of a dataclass, those of dataclasses in it too."""
    found = []
    for field in fields(options):
        value = getattr(options, field.name)
        found += names(value) if hasattr(value, "__dataclass_fields__") else [f"--{field.name}"]
    return found


def unknown(found: str, known: Sequence[str]) -> str:
    """What to say of an option that there is none of."""
    near = difflib.get_close_matches(found.partition("=")[0].replace("-", "_").replace("__", "--"), known, 1)
    return f"unknown option {found}; " + (f"did you mean {near[0]}?" if near else "--help lists what there is")
