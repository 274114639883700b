"""The one exception that means: the input is wrong, and here is the fix."""


class UserError(Exception):
    """Bad input, told in one line that names the file, key or sentence at fault and what to do about it."""
