"""The error for wrong user input, and the reasons of a file system."""

import errno
import os
import re

_CODES = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM]
_CODES += [errno.ENAMETOOLONG, errno.EIO]
_REASONS = "|".join(re.escape(os.strerror(code)) for code in _CODES)


class InputError(ValueError):
    """Wrong user input; the message is one line that names the file, the field and the remedy."""


def first_line(error: object) -> str:
    """Returns the first line of an error message."""
    return str(error).split("\n")[0]


def file_system_reason(error: Exception) -> str:
    """Returns why a file system refused: "PATH; No space left on device"; "" for other errors."""
    if isinstance(error, OSError):
        place = f"{error.filename}; " if error.filename else ""
        return place + os.strerror(error.errno) if error.errno in _CODES else ""
    # TensorFlow puts the operation before the path.
    found = re.search(rf"(?:{{{{.*?}}}} )?(.*?; (?:{_REASONS}))", str(error))
    return found[1] if found else ""
