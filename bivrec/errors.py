"""The one exception that a user sees."""

import errno

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk answers."""


class BivrecError(Exception):
    """A fault that the user can mend.

    The message is one line: file, row, value, what was expected, and what to do.
    The command line prints it without a traceback and exits with status 1.
    """


def not_installed(package: str, extra: str) -> BivrecError:
    """The error for a package that one of the extras of bivrec brings."""
    return BivrecError(f'{package} is not installed; run `pip install "bivrec[{extra}]"`')
