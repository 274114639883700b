"""The exceptions that end a command with one line."""


class UserError(Exception):
    """Raised for invalid user input. The message is one line that says what is wrong, where, and how to fix it."""


class Interrupted(BaseException):
    """Raised in the main thread by Ctrl-C, SIGTERM or SIGHUP. It passes every `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number  # of the signal


def one_line(error: Exception) -> str:
    """Return the type and text of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
