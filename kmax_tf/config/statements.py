"""Reads the statements of gin files and of bindings, with gin's own parser."""

import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from gin import config_parser as parser

from kmax_tf import files
from kmax_tf.errors import InputError, first_line, nearest

DYNAMIC = "from __gin__ import dynamic_registration"


class _Reference(str):
    """A reference in a bound value: `@scope/name`, or the macro `%name`."""

    __repr__ = str.__str__


class _References(parser.ParserDelegate):
    """Lets gin's parser read references without looking them up."""

    def configurable_reference(self, name, evaluate):
        return _Reference(f"@{name}")

    def macro(self, name):
        return _Reference(f"%{name}")


class Source:
    """The statements of one gin file, or of one binding below the imports of all files."""

    def __init__(self, name: str, text: str, is_file: bool = True):
        self.name, self.text, self.is_file = name, text, is_file
        try:
            self.statements = list(parser.ConfigParser(text, _References()))
        except SyntaxError as error:
            unread = re.search(r"Failed to parse token '(.*)'", error.msg)
            message = f"cannot read {unread[1]} (a string needs quotes)" if unread else error.msg
            raise InputError(f"{self._at(error.lineno)}: {first_line(message)}") from None
        except tokenize.TokenError as error:
            raise InputError(f"{self._at(error.args[1][0])}: {error.args[0]}") from None

    def of_kind(self, kind: type) -> list:
        return [statement for statement in self.statements if isinstance(statement, kind)]

    def at(self, statement: Any) -> str:
        """Returns the place of a statement for messages."""
        return self._at(statement.location.line_num)

    def _at(self, line):
        return f"{self.name}:{line}" if self.is_file else self.name


def find(name: str, folders: Sequence[str], where: str) -> str:
    """Returns the first of folder/name that is a file."""
    paths = [_join(folder, name) for folder in ([""] if "://" in name else folders)]
    for path in paths:
        if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
            return path
    near = [
        os.path.join(os.path.dirname(name), os.path.basename(other))
        for path in paths
        for other in files.matching(os.path.dirname(path) or ".", "*.gin")
    ]
    raise InputError(f"{where}no gin file {name!r}{nearest(name, near)}")


def _join(folder: str, name: str) -> str:
    """Joins and normalizes a path as os.path does, but keeps the `gs://` at its start."""
    scheme, mark, path = os.path.join(folder, name).rpartition("://")
    return scheme + mark + os.path.normpath(path)


def read(path: str, parents: tuple[str, ...], done: set[str]) -> list[Source]:
    """Reads a file and its includes, in the order in which gin applies them."""
    done.add(path)
    try:
        file = Source(path, files.read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no gin file, or not UTF-8; save it as UTF-8") from error
    sources = []
    bound = None  # the line of the first binding
    for statement in file.statements:
        if isinstance(statement, parser.IncludeStatement):
            if bound:
                raise InputError(
                    f"{file.at(statement)}: include comes after the binding in line {bound} and "
                    "would override it; move the include up"
                )
            folders = [os.path.dirname(path), files.GIN_ROOT]
            included = find(statement.filename, folders, where=f"{file.at(statement)}: ")
            if included in (*parents, path):
                raise InputError(f"{file.at(statement)}: {included} includes itself")
            if included not in done:
                sources += read(included, (*parents, path), done)
        elif not isinstance(statement, parser.ImportStatement):
            bound = bound or statement.location.line_num
    return [*sources, file]


def read_binding(binding: str, imports: list[str]) -> Source:
    """Reads one binding, with the import lines before it."""
    text = "\n".join([*imports, binding]) + "\n"
    source = Source(f"binding {binding!r}", text, is_file=False)
    own = source.statements[len(imports) :]
    if not own or not all(isinstance(statement, parser.BindingStatement) for statement in own):
        raise InputError(f"{source.name}: write module.Name.parameter = value")
    return source


def references(value: Any) -> Iterator[_Reference]:
    """Yields the references anywhere in a bound value."""
    if isinstance(value, _Reference):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.items() if isinstance(value, dict) else value:
            yield from references(item)
