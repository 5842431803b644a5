"""The error for anything a user can put right: the tools print its message alone and exit with code 2."""


class InputError(ValueError):
    """Bad input from the user; the message says what is wrong, where it is and what to do about it."""
