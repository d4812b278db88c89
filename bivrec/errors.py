"""The one exception that a user sees."""


class BivrecError(Exception):
    """A fault that the user can mend.

    The message is one line: file, row, value, what was expected, and what to do.
    The command line prints it without a traceback and exits with status 1.
    """
