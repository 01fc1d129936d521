"""Errors that are the user's to mend."""


class UserError(ValueError):
    """A setting, a file or data that cannot be used.

    The message says what was received, what was expected and what to do. The command
    line shows it in one line; any other exception keeps its traceback.
    """
