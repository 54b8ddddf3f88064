"""Values of JSON formats: exact, or refused in one line with file, field and remedy."""

import unicodedata
from typing import Any

from kmax_tf import errors, files


def integer(entry: Any, key: str, where: str) -> int:
    """Returns a whole number of a JSON object; 7.0 is 7.

    Args:
        entry: the JSON object.
        key: name of the field.
        where: file and place, for the message.

    Raises:
        InputError: the field is missing, or is no whole number: true, "7", 7.5, NaN or null.
    """
    value = files.field(entry, key, object, where)
    if type(value) is int:  # no bool; the rest takes longer
        return value
    if isinstance(value, bool) or not isinstance(value, float) or value % 1 != 0:
        raise _refused(key, "int", value, where)
    return int(value)


def flag(entry: Any, key: str, where: str) -> bool:
    """Returns a flag of a JSON object: 0, 1, false or true.

    Args and raises are those of `integer`; "0", "false", 2 and null are no flags.
    """
    value = files.field(entry, key, object, where)
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise _refused(key, "0 or 1", value, where)
    return bool(value)


def text(entry: Any, key: str, where: str) -> str:
    """Returns a text of a JSON object without control characters, which can be written as UTF-8.

    Args and raises are those of `integer`.
    """
    value = files.field(entry, key, str, where)
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs"):  # control, half of a surrogate pair
            raise errors.InputError(
                f'{where}: "{key}" is {value!a:.40}; rename it without the character {character!a}'
            )
    return value


def identity(entry: Any, key: str, where: str) -> str:
    """Returns an id, a whole number or a text, as text.

    Args and raises are those of `integer`.
    """
    value = files.field(entry, key, object, where)
    return text(entry, key, where) if isinstance(value, str) else str(integer(entry, key, where))


def _refused(key, kind, value, where):
    return errors.InputError(f'{where}: field "{key}" must be {kind}, found {value!r:.40}; fix it')
