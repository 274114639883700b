"""The exception for invalid user input."""


class UserError(Exception):
    """Raised for invalid user input. The message is one line that says what is wrong, where, and how to fix it."""


def one_line(error: Exception) -> str:
    """Return the type and text of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
