"""The one exception a user's own mistake raises, everywhere. The command line prints its line and exits with code 2."""


class UserError(Exception):
    """One line that names the file, key or value at fault and says what to do about it."""
