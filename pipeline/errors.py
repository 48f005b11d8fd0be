"""What a user gave wrongly, and who else is at work; each with the exit code of a command that it ends."""

from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec


class InputError(ValueError):
    """Something a user gave is wrong. The message says what was found, where, and what to do."""

    exit_code = 4


class WrongOption(InputError):
    """There is no such option."""

    exit_code = 2


class Locked(InputError):
    """Another process works in the run directory."""

    exit_code = 5


def at_least_one(**values: int | None) -> None:
    """Raises InputError where one is a number below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1; found {value}")


def above_zero(**values: float | None) -> None:
    """Raises InputError where one is a number that is not above 0."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} must be above 0; found {value}")


def check_types(options: Any) -> None:
    """Raises InputError where a field of a dataclass is not what its annotation says; NumPy's numbers are numbers."""
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        try:
            msgspec.convert(value.item() if hasattr(value, "item") else value, hint)
        except msgspec.ValidationError:
            raise InputError(f"{name} must be {_shown(hint)}; found {value!r}") from None


def _shown(hint: Any) -> str:
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, kinds))
    if NoneType in kinds:
        return " or ".join(map(_shown, kinds))
    return {NoneType: "None", int: "a whole number", float: "a number", str: "a string"}.get(hint, str(hint))
