"""What a user gave wrongly, and who else is at work; each with the exit code of a command that it ends."""


class InputError(ValueError):
    """Something a user gave is wrong. The message says what was found, where, and what to do."""

    exit_code = 4


class WrongOption(InputError):
    """There is no such option."""

    exit_code = 2


class Locked(InputError):
    """Another process works in the run directory."""

    exit_code = 5
