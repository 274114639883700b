"""The exceptions that end a command with one line, and the words they share."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Raised for invalid user input. The message is one line that says what is wrong, where, and how to fix it."""


class Interrupted(BaseException):
    """Raised in the main thread by Ctrl-C, SIGTERM or SIGHUP. It passes every `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number  # of the signal


def suggestion(name: str, known: Iterable[str], what: str) -> str:
    """Return which known names are close to an unknown one, or, where none is, all of them; what: their plural."""
    known = list(known)
    close = get_close_matches(name, known)
    return f"did you mean {' or '.join(close)}?" if close else f"the {what} are {', '.join(known)}"


def one_line(error: Exception) -> str:
    """Return the type and text of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
