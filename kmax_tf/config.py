"""Reads an experiment from gin files, and writes it back as one file.

The classes and functions that a gin file names do not import gin. A file enables dynamic
registration, imports modules, includes other files, then binds parameters:

    from __gin__ import dynamic_registration
    from kmax_tf import experiment

    include "gin/data/coco.gin"

    experiment.Experiment.steps = 100

gin accepts an include that overrides the lines above it, and its error messages have many lines.
This module therefore parses and checks every statement first, with gin's own parser. gin reads the
checked text afterwards.
"""

import difflib
import inspect
import itertools
import os
import pkgutil
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gin
import tensorflow as tf
from gin import config_parser as parser

from kmax_tf import files
from kmax_tf.errors import InputError, first_line, nearest

_DYNAMIC = "from __gin__ import dynamic_registration"


def load(target: Callable, gin_file: str, bindings: Sequence[str] = ()) -> Any:
    """Builds `target` from a gin file and bindings.

    Args:
        target: The class or function to call. The gin files bind its parameters.
        gin_file: Path of a gin file, anywhere tf.io.gfile reads. It is relative to the working
            directory or to the repository's root. An include is relative to its file's folder or
            to the root. A file that is included twice is read once.
        bindings: Lines such as `experiment.Experiment.steps = 5`, applied after the file. They may
            use every name that a loaded file imports. Each has to reach a part of `target`; files
            may bind more.

    Returns:
        The result of `target()` under gin.

    Raises:
        InputError: A file, name, scope, parameter or value is missing or wrong. The message is one
            line with the place and the nearest valid name.
    """
    path = _find(gin_file, ["", files.GIN_ROOT], where="")
    sources = _read(path, parents=(), done=set())
    is_alone = len(sources) == 1
    imports = [s.format() for source in sources for s in source.of_kind(parser.ImportStatement)]
    imports = list(dict.fromkeys([_DYNAMIC, *imports]))
    sources += [_read_binding(binding, imports) for binding in bindings]
    bound = _check(sources)
    if target not in [b.configurable for b in bound]:
        raise InputError(f"{path}: binds no parameter of {target.__name__}")
    _check_scopes(bound, is_alone)
    _check_used(bound, target)

    gin.clear_config()
    for source in sources:
        text = re.sub(r"(?m)^[ \t]*include\b.*", "", source.text)  # `_read` has followed them
        try:
            gin.parse_config(text)
        except (SyntaxError, NameError, ValueError) as error:
            raise InputError(f"{source.name}: {first_line(error)}") from None
    gin.finalize()
    return _build(target, path)


def resolved() -> str:
    """Returns the configuration of the last `load` as the text of one gin file.

    The text has no includes and no overridden bindings. `load` reads it back to the same result.
    """
    return gin.config_str(max_line_length=100)


def sources() -> list[str]:
    """Returns the files of the modules that the configuration of the last `load` imports."""
    found = re.findall(r"(?m)^(?:from (\S+) )?import (\S+)", resolved())
    modules = (sys.modules.get(".".join(filter(None, parts))) for parts in found)
    return sorted({m.__file__ for m in modules if m and m.__file__})


def bindings(text: str) -> dict[str, str]:
    """Returns the value of each parameter that a text of `resolved` binds, as text."""
    return {
        "/".join(filter(None, (s.scope, f"{s.selector}.{s.arg_name}"))): repr(s.value)
        for s in _Source("config.gin", text).of_kind(parser.BindingStatement)
    }


class _Reference(str):
    """A reference in a bound value: `@scope/name`, or the macro `%name`."""

    __repr__ = str.__str__


class _References(parser.ParserDelegate):
    """Lets gin's parser read references without looking them up."""

    def configurable_reference(self, name, evaluate):
        return _Reference(f"@{name}")

    def macro(self, name):
        return _Reference(f"%{name}")


class _Source:
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


class _Bound(NamedTuple):
    """A binding whose names are resolved."""

    at: str
    is_file: bool
    scope: str
    selector: str
    configurable: Callable
    parameter: str
    references: list[tuple[str, Callable]]  # scope and configurable


def _find(name: str, folders: Sequence[str], where: str) -> str:
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


def _read(path: str, parents: tuple[str, ...], done: set[str]) -> list[_Source]:
    """Reads a file and its includes, in the order in which gin applies them."""
    done.add(path)
    try:
        file = _Source(path, files.read_bytes(path).decode("utf-8-sig"))
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
            included = _find(statement.filename, folders, where=f"{file.at(statement)}: ")
            if included in (*parents, path):
                raise InputError(f"{file.at(statement)}: {included} includes itself")
            if included not in done:
                sources += _read(included, (*parents, path), done)
        elif not isinstance(statement, parser.ImportStatement):
            bound = bound or statement.location.line_num
    return [*sources, file]


def _read_binding(binding: str, imports: list[str]) -> _Source:
    """Reads one binding, with the import lines before it."""
    text = "\n".join([*imports, binding]) + "\n"
    source = _Source(f"binding {binding!r}", text, is_file=False)
    own = source.statements[len(imports) :]
    if not own or not all(isinstance(statement, parser.BindingStatement) for statement in own):
        raise InputError(f"{source.name}: write module.Name.parameter = value")
    return source


def _check(sources: list[_Source]) -> list[_Bound]:
    """Checks every name of the sources; returns their bindings."""
    bound = []
    for source in sources:
        imports = {s.format(): s for s in source.of_kind(parser.ImportStatement)}
        dynamic = imports.pop(_DYNAMIC, None)
        modules = {s.bound_name(): _import(s, source.at(s)) for s in imports.values()}
        for statement in source.of_kind(parser.BindingStatement):
            if not dynamic:
                raise InputError(
                    f"{source.at(statement)}: put `{_DYNAMIC}` and imports of the names below on "
                    "the first lines of the file"
                )
            bound.append(_check_binding(statement, modules, source))
    return bound


def _check_binding(binding: Any, modules: dict[str, Any], source: _Source) -> _Bound:
    """Checks the names of one binding, and resolves them."""
    at, names, references = source.at(binding), list(_references(binding.value)), []
    if not binding.arg_name or any(name.startswith("%") for name in names):
        raise InputError(f"{at}: macros are unsupported; bind the parameter")
    for name in names:
        scope, _, selector = name[1:].rpartition("/")
        references.append((scope, _resolve(selector, modules, at)))
    configurable = _resolve(binding.selector, modules, at)
    parameters = inspect.signature(configurable).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if binding.arg_name not in parameters and not takes_any:
        near = nearest(binding.arg_name, parameters)
        raise InputError(f"{at}: {binding.selector} has no {binding.arg_name!r}{near}")
    return _Bound(
        at,
        source.is_file,
        binding.scope,
        binding.selector,
        configurable,
        binding.arg_name,
        references,
    )


def _check_scopes(bound: list[_Bound], is_alone: bool) -> None:
    """Checks that references have scopes of bindings, and bindings those of references.

    A file may have others, unless one that is right is near.
    """
    given = {b.scope for b in bound} - {""}
    named = {s for b in bound for scope, _ in b.references for s in _outer(scope)} - {""}
    for b in bound:
        for scope, _ in b.references:
            _check_scope(b, _outer(scope), given, "nothing is bound in the scope")
        if not (b.is_file and is_alone):  # config.gin keeps scopes of references that were replaced
            _check_scope(b, [b.scope], named, "no reference has the scope")


def _check_scope(b: _Bound, scopes: list[str], known: set[str], what: str) -> None:
    """Refuses the last of `scopes` if none is known; in a file, if also a known one is near."""
    scope = scopes[-1]
    is_wrong = scope and known.isdisjoint(scopes)
    if is_wrong and (not b.is_file or difflib.get_close_matches(scope, known)):
        raise InputError(f"{b.at}: {what} {scope!r}{nearest(scope, sorted(known))}")


def _outer(scope: str) -> list[str]:
    """Returns a scope and those around it, whose bindings it takes: "a/b" -> ["a", "a/b"]."""
    return list(itertools.accumulate(scope.split("/"), "{}/{}".format))


def _check_used(bound: list[_Bound], target: Callable) -> None:
    """Checks that each binding outside the files reaches `target` or a part of it."""
    reached = _reached(bound, target)
    for b in bound:
        scopes = {s for scope in reached.get(b.configurable, ()) for s in ("", *_outer(scope))}
        if not b.is_file and b.scope not in scopes:
            name = "/".join(filter(None, (b.scope, b.selector)))
            raise InputError(
                f"{b.at}: nothing refers to {name}; bind a parameter to @{name}(), or leave this"
                " out"
            )


def _reached(bound: list[_Bound], target: Callable) -> dict[Callable, set[str]]:
    """Returns `target` and the parts that it refers to, each with the scopes of its calls."""
    final = {(b.configurable, b.scope, b.parameter): b.references for b in bound}
    reached: dict[Callable, set[str]] = {}
    waiting = [("", target)]
    while waiting:
        scope, part = waiting.pop()
        if scope in reached.setdefault(part, set()):
            continue
        reached[part].add(scope)
        for (owner, outer, _), references in final.items():
            if owner == part and outer in ("", *_outer(scope)):
                waiting += [(own or scope, other) for own, other in references]
    return reached


def _import(statement: Any, at: str) -> Any:
    """Imports the module of an import statement as gin does."""
    try:
        fromlist = [""] if statement.is_from or statement.alias else None
        return __import__(statement.module, fromlist=fromlist)
    except ImportError as error:
        missing = error.name or ""
        is_ours = f"{statement.module}.".startswith(f"{missing}.")
        if not is_ours or not isinstance(error, ModuleNotFoundError):
            raise InputError(f"{at}: cannot import {statement.module}: {error}") from None
        parent, _, name = missing.rpartition(".")
        folders = getattr(sys.modules.get(parent), "__path__", None)
        if parent and folders is None:
            raise InputError(
                f"{at}: {parent} is a module; import it and write {parent.split('.')[-1]}.{name}"
            ) from None
        known = [module.name for module in pkgutil.iter_modules(folders)]
        raise InputError(f"{at}: no module {missing!r}{nearest(name, known)}") from None


def _resolve(selector: str, modules: dict[str, Any], at: str) -> Callable:
    """Returns the class or function that a dotted name of a gin file stands for."""
    first, *rest = selector.split(".")
    if first not in modules:
        known = {name: name for name in modules}
        for name, module in modules.items():
            known |= {other: f"{name}.{other}" for other in _configurables(module)}
        raise InputError(f"{at}: no import is named {first!r}{nearest(first, known)}")
    found, path = modules[first], first
    for name in rest:
        if not hasattr(found, name):
            near = nearest(name, _configurables(found))
            raise InputError(f"{at}: {path} has no {name!r}{near}")
        found, path = getattr(found, name), f"{path}.{name}"
    if not callable(found):
        raise InputError(f"{at}: {path} is neither a class nor a function")
    return found


def _configurables(module: Any) -> list[str]:
    """Returns the names in a module that a gin file may use: public classes, functions, modules."""
    return [
        name
        for name, value in inspect.getmembers(module)
        if not name.startswith("_") and (callable(value) or inspect.ismodule(value))
    ]


def _references(value: Any) -> Iterator[_Reference]:
    """Yields the references anywhere in a bound value."""
    if isinstance(value, _Reference):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.items() if isinstance(value, dict) else value:
            yield from _references(item)


def _build(target: Callable, path: str) -> Any:
    """Calls `target` under gin, without the lines that gin adds to an error message."""
    try:
        return gin.get_configurable(target)()
    except InputError as error:
        raise InputError(f"{path}: {first_line(error)}") from None
    except TypeError as error:
        pattern = r"([\w.]+?)(?:\.__init__)?\(\) missing \d+ required .*?: (.*)"
        missing = re.match(pattern, str(error))
        name = missing and missing[1].split(".")[-1]
        if not missing or f"In call to configurable '{name}'" not in str(error):
            raise
        raise InputError(f"{path}: {name} needs a value for {missing[2]}") from None
