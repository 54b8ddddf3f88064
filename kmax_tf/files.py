"""Whole files, local or on gs://: read, written, and one clear line when something is wrong."""

import json
import os
import uuid
from typing import Any

import tensorflow as tf

from kmax_tf.errors import InputError


def read_bytes(path: str) -> bytes:
    """Returns the content of a file; InputError if it is missing or cannot be read."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        reason = error.message.removeprefix(f"{path}; ")
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error


def read_json(path: str) -> Any:
    """Returns the parsed content of a JSON file; InputError names the line that is not JSON."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise InputError(
            f"{path}: not valid JSON at {place} ({error.msg}); fix it there"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON (not UTF-8 text); give a JSON file") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number too long
        raise InputError(f"{path}: not JSON that can be read ({error}); fix it") from error


def field(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Returns entry[key] of a JSON object.

    Args:
        entry: what should be a JSON object.
        key: the field wanted.
        kind: the Python type or types that its value may have; a boolean passes as int.
        where: file and place, for the message.

    Raises:
        InputError: entry is no object, the field is missing, or its value is of another type.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(entry).__name__}; fix it")
    if key not in entry:
        raise InputError(f'{where}: field "{key}" is missing; add it')
    if not isinstance(entry[key], kind):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(
            f'{where}: field "{key}" must be {kinds}, found {entry[key]!r:.40}; fix it'
        )
    return entry[key]


def make_folder(path: str) -> None:
    """Makes a folder, and those above it, unless it is there; InputError if it cannot be made."""
    try:
        tf.io.gfile.makedirs(path)
    except tf.errors.OpError as error:
        reason = error.message.removeprefix(f"{path}; ")
        raise InputError(f"{path}: cannot be made ({reason}); check the path") from error


def write_atomic(path: str, data: bytes | str) -> None:
    """Writes a whole file and makes its folder: readers see the old content or all of the new."""
    make_folder(os.path.dirname(path) or ".")
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(data)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except tf.errors.OpError as error:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)
        raise InputError(f"{path}: cannot be written ({error.message}); check the path") from error
