"""The one error that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input: says what was wrong, where (file, line, key) and what to do.

    The command line prints it as one line and exits with code 2; from Python it is a `ValueError`.
    """
