"""The error for wrong user input, and the reasons of a file system."""

import difflib
import errno
import numbers
import os
import re
from collections.abc import Iterable, Sequence

_CODES = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM]
_CODES += [errno.ENAMETOOLONG, errno.EIO]
_REASONS = "|".join(re.escape(os.strerror(code)) for code in _CODES)


class InputError(ValueError):
    """Wrong user input; the message is one line that names the file, the field and the remedy."""

    _keras_call_info_injected = True  # a Keras layer would add lines to the message


def check_equal_lengths(owner: str, **settings: Sequence) -> None:
    """Raises InputError unless all settings of a class, given by name, have as many entries."""
    if len(set(map(len, settings.values()))) > 1:
        counts = ", ".join(f"{name} has {len(value)}" for name, value in settings.items())
        raise InputError(f"{owner}: {counts} entries; bind as many for each")


def check_size(name: str, size: Sequence[int]) -> None:
    """Raises InputError unless a setting is a height and a width, in pixels."""
    is_pair = isinstance(size, Sequence) and len(size) == 2
    if not is_pair or not all(isinstance(s, numbers.Integral) and s > 0 for s in size):
        raise InputError(f"{name} {size!r} is not (height, width); bind e.g. (641, 641)")


def nearest(name: str, known: Iterable[str] | dict[str, str]) -> str:
    """Returns a message's end with the nearest known name, or with all if there are few.

    A dictionary maps each known name to the form shown.
    """
    known = known if isinstance(known, dict) else {other: other for other in known}
    if close := closest(name, known):
        return f"; did you mean {known[close]!r}?"
    return f"; there are: {', '.join(known.values())}" if 0 < len(known) <= 20 else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is like `name`, or None."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def first_line(error: object) -> str:
    """Returns the first line of an error message."""
    return str(error).split("\n")[0]


def file_system_reason(error: Exception) -> str:
    """Returns why a file system refused, and the remedy, as one line; "" for other errors."""
    local = "; free space there, or choose a folder that you may write to"
    if isinstance(error, OSError):
        place = f"{error.filename}; " if error.filename else ""
        return place + os.strerror(error.errno) + local if error.errno in _CODES else ""
    # TensorFlow puts the operation before the path.
    found = re.search(rf"(?:{{{{.*?}}}} )?(.*?; (?:{_REASONS}))", str(error))
    if found:
        return found[1] + local
    if found := re.search(r"File system scheme .*? not implemented \(file: .*?\)", str(error)):
        return f"{found[0]}; give a local or gs:// path"
    found = re.search(r"Error executing an HTTP request: (\w+ (?:\w+ )?code \d+)", str(error))
    place = re.search(r"gs://[^\s'\"]+", str(error))
    remedy = "check the path, your rights and the network"
    return f"{place[0] if place else 'storage'}; {found[1]}; {remedy}" if found else ""
