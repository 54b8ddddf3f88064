"""Lists folders, and reads and writes whole files, local or on gs://."""

import contextlib
import fnmatch
import json
import os
import re
import uuid
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kmax_tf.errors import InputError

PACKAGE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(PACKAGE)  # the repository, where this is one
# The folder that holds gin/: a wheel carries it within the package.
GIN_ROOT = ROOT if os.path.isdir(os.path.join(ROOT, "gin", "experiments")) else PACKAGE

PART = 1 << 24  # bytes
# What is asked for may be whole, but not at hand.
NOT_AT_HAND = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,  # no address for the name of the host
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,  # such as EIO of a disk
)


class NotAtHand(InputError):
    """What may be whole cannot be reached now, for lack of access, space or network."""


UNREACHABLE = (NotAtHand, *NOT_AT_HAND)


def expanded(path: str | os.PathLike) -> str:
    """Returns a path as text, with the home folder for a `~` at its start."""
    text = os.fsdecode(path)
    if isinstance(path, os.PathLike):  # pathlib makes gs:/bucket of gs://bucket
        text = re.sub(r"^([a-z0-9]+):/(?=[^/])", r"\1://", text)
    return os.path.expanduser(text)


def names(folder: str, *, required: bool = True) -> list[str]:
    """Returns the sorted names in a folder, without the "/" after those of folders.

    Args:
        folder: the folder.
        required: whether it must exist; else a missing folder has no names.

    Raises:
        InputError: the folder does not exist, or a name is not UTF-8.
        NotAtHand: the folder cannot be listed now.
    """
    if not tf.io.gfile.isdir(folder):
        # `isdir` is also False if the storage does not answer; `exists` and `stat` tell that apart.
        if tf.io.gfile.exists(folder) and tf.io.gfile.stat(folder).is_directory:
            raise NotAtHand(f"{folder}: cannot be listed now; try again")
        if required:
            raise InputError(f"{folder}: no such folder; check the path")
        return []
    try:
        return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{folder}: has a name that is not UTF-8 ({error.object!r:.80}); rename it"
        ) from error


def matching(folder: str, pattern: str) -> list[str]:
    """Returns the sorted paths in a folder whose names match a pattern such as "*.json".

    The signs `*`, `?`, `[` and `\\` of the folder stand for themselves. A missing folder has none.
    """
    present = names(folder, required=False)
    return [os.path.join(folder, name) for name in fnmatch.filter(present, pattern)]


def check_literal(path: str) -> None:
    """Raises InputError if TensorFlow takes the path of a checkpoint or export for a pattern."""
    if re.search(r"\\|\[.+\]", path):
        raise InputError(
            f"{path}: TensorFlow cannot read checkpoints and exports there, because it takes"
            " [...] and \\ for a pattern; choose a name without them"
        )


def read_bytes(path: str) -> bytes:
    """Returns the content of a file; raises InputError if it cannot be read."""
    return bytes(_read(path))


def _read(path: str) -> bytearray:
    """Reads a file in parts: as a whole, TensorFlow takes three times its size."""
    content = bytearray()
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            while part := file.read(PART):
                content += part
        return content
    except tf.errors.OpError as error:
        reason = error.message.removeprefix(f"{path}; ")
        raise kind_of(error)(f"{path}: cannot be read ({reason}); check the path") from error


def kind_of(error: tf.errors.OpError) -> type[InputError]:
    """Returns the class of the InputError for an error of the file system."""
    return NotAtHand if isinstance(error, NOT_AT_HAND) else InputError


def read_json(path: str, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """Returns the parsed content of a JSON file; raises InputError with the line of a mistake.

    `object_hook` gets each object when it is read, the inner ones first, and replaces it.
    """
    content = [_read(path)]
    try:
        return json.loads(content.pop(), object_hook=object_hook)  # the bytes go before the objects
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise InputError(
            f"{path}: not valid JSON at {place} ({error.msg}); fix it there"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON (not UTF-8 text); give a JSON file") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number too long
        raise InputError(f"{path}: unreadable JSON ({error}); fix it") from error


def field(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Returns entry[key] of a JSON object.

    Args:
        entry: The JSON object.
        key: Name of the field.
        kind: Allowed Python type or types of the value. A boolean passes as int.
        where: File and place, for the message.

    Raises:
        InputError: `entry` is not an object, the field is missing, or its value has another type.
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
    """Makes a folder and its parents, if missing; raises InputError if that fails."""
    try:
        tf.io.gfile.makedirs(path)
    except tf.errors.OpError as error:
        reason = error.message.removeprefix(f"{path}; ")
        raise kind_of(error)(
            f"{path}: cannot be created ({reason}); check space and path"
        ) from error


def flat_name(name: str) -> str:
    """Returns a name without folders, unique for each name: "a/b" becomes "a%2Fb"."""
    return name.replace("%", "%25").replace("/", "%2F")


def is_unfinished(name: str) -> bool:
    """Returns whether a file is what a kill left of `write_atomic`."""
    return bool(re.fullmatch(r"[0-9a-f]{8}\.tmp", name))


def write_atomic(path: str, data: bytes | str) -> None:
    """Writes a whole file and makes its folder; readers see the old content or all of the new."""
    folder = os.path.dirname(path)
    make_folder(folder or ".")
    temporary = os.path.join(folder, f"{uuid.uuid4().hex[:8]}.tmp")  # short, as names may be long
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(data)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except tf.errors.OpError as error:
        with contextlib.suppress(tf.errors.OpError):  # never written, or out of reach, too
            tf.io.gfile.remove(temporary)
        reason = error.message.removeprefix(f"{temporary}; ")
        raise kind_of(error)(
            f"{path}: cannot be written ({reason}); check space and path"
        ) from error
