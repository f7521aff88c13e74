"""The one exception that means: the user's input was wrong."""


class UserError(Exception):
    """Bad input. Its text is one clear line: what was wrong, where, and what was expected.

    The command line prints the text and exits with code 2; library callers may catch it.
    """
