"""What is wrong with the input of a user, and how it is said."""


class InputError(ValueError):
    """Something the user gave is wrong: one line that names the file, the field and the remedy."""


def first_line(error: object) -> str:
    """Returns what others' errors say first, and often at length afterwards."""
    return str(error).split("\n")[0]
