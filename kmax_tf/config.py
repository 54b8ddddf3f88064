"""gin in one place: reads an experiment from gin files, and writes it back as one file.

The classes and functions that a gin file names know nothing of gin: a file says
`from __gin__ import dynamic_registration` first, then imports modules, then binds parameters:

    from __gin__ import dynamic_registration
    from kmax_tf import experiment

    include "gin/data/coco.gin"

    experiment.Experiment.steps = 100

gin itself lets several mistakes pass (an include that undoes the lines above it, a misspelt
macro) and reports others in many lines. So the files are read and checked here first, statement
by statement with gin's own parser; gin then gets text that it accepts.
"""

import difflib
import inspect
import io
import os
import pkgutil
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import gin
import tensorflow as tf
from gin import config as gin_config
from gin import config_parser

from kmax_tf.errors import InputError, first_line
from kmax_tf.files import read_bytes

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder of gin/
_DYNAMIC = "__gin__.dynamic_registration"


class _Reference(NamedTuple):
    """What a bound value refers to: `@scope/name`, or the macro `%name`."""

    name: str
    is_macro: bool

    def __repr__(self) -> str:
        return ("%" if self.is_macro else "@") + self.name


_REQUIRED = _Reference("gin.REQUIRED", is_macro=True)


class _Source(NamedTuple):
    """One gin file, or one binding, without its includes."""

    name: str
    is_file: bool
    text: str
    statements: list

    def at(self, statement: Any) -> str:
        """Where a statement is, for messages."""
        return f"{self.name}:{statement.location.line_num}" if self.is_file else self.name


class _References(config_parser.ParserDelegate):
    """Lets gin's parser read references without looking them up."""

    def configurable_reference(self, name, evaluate):
        return _Reference(name, is_macro=False)

    def macro(self, name):
        return _Reference(name, is_macro=True)


def load(target: Callable, gin_file: str, bindings: Sequence[str] = ()) -> Any:
    """Builds `target` as a gin file and bindings say.

    Args:
      target: The class or function to call. The gin files bind its parameters.
      gin_file: Path of a gin file, anywhere tf.io.gfile reads. A path that is not found from the
        working directory is looked for from the repository's root; an include is looked for from
        its file's folder, then from the root. A file that is included twice is read once.
      bindings: Lines such as `experiment.Experiment.steps = 5`, applied after the file. They may
        use every name that a loaded file imports.

    Returns:
      What `target()` returns under gin.

    Raises:
      InputError: A file, name, parameter, macro or value is missing or wrong; one line that says
        where, with the nearest valid name.
    """
    path = _find(gin_file, ["", _ROOT], where="")
    sources = _read(path, parents=(), done=set())
    sources += _binding_sources(bindings, sources)
    if target not in _check(sources):
        raise InputError(f"{path}: binds nothing of {target.__name__}")

    gin.clear_config()
    for source in sources:
        try:
            gin.parse_config(_named(source.name, source.text))
        except (SyntaxError, NameError, ValueError) as error:
            raise InputError(f"{source.name}: {first_line(error)}") from None
    _forget_unreachable_macros()
    gin.finalize()
    return _build(target, path)


def resolved() -> str:
    """Returns what `load` last read as the text of one gin file that needs no other.

    Bindings that were overridden are gone; `load` reads the text back to the same result.
    """
    return gin.config_str(max_line_length=100)


def bindings(text: str) -> dict[str, str]:
    """Returns the value of each parameter and macro that a text of `resolved` binds, as text."""
    return {
        _written(s): repr(s.value)
        for s in _parse("config.gin", text)
        if isinstance(s, config_parser.BindingStatement)
    }


def _find(name: str, folders: Sequence[str], where: str) -> str:
    """Returns the first of folder/name that is a file."""
    paths = [_join(folder, name) for folder in ([""] if "://" in name else folders)]
    for path in paths:
        if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
            return path
    near = [
        os.path.join(os.path.dirname(name), other)
        for folder in map(os.path.dirname, paths)
        if tf.io.gfile.isdir(folder or ".")
        for other in tf.io.gfile.listdir(folder or ".")
        if other.endswith(".gin")
    ]
    raise InputError(f"{where}no gin file {name!r}{_nearest(name, near)}")


def _join(folder: str, name: str) -> str:
    """os.path.join and normpath that leave the `gs://` of a path alone."""
    scheme, mark, path = os.path.join(folder, name).rpartition("://")
    return scheme + mark + os.path.normpath(path)


def _read(path: str, parents: tuple[str, ...], done: set[str]) -> list[_Source]:
    """Reads a file and what it includes, in the order in which gin applies them."""
    done.add(path)
    text = read_bytes(path).decode()
    statements = _parse(path, text)
    file = _Source(path, True, _without_includes(text, statements), statements)
    sources = []
    bound = None
    for statement in statements:
        if isinstance(statement, config_parser.IncludeStatement):
            if bound:
                raise InputError(
                    f"{file.at(statement)}: include comes after the binding in line {bound} and "
                    "would override it; move the include up"
                )
            folders = [os.path.dirname(path), _ROOT]
            included = _find(statement.filename, folders, where=f"{file.at(statement)}: ")
            if included in (*parents, path):
                raise InputError(f"{file.at(statement)}: {included} includes itself")
            if included not in done:
                sources += _read(included, (*parents, path), done)
        elif not isinstance(statement, config_parser.ImportStatement):
            bound = bound or statement.location.line_num
    return [*sources, file]


def _parse(name: str, text: str) -> list:
    """Returns the statements of a gin text."""
    try:
        return list(config_parser.ConfigParser(_named(name, text), _References()))
    except SyntaxError as error:
        unread = re.search(r"Failed to parse token '(.*)'", error.msg)
        message = (
            f"cannot read {unread[1]} (a string needs quotes)" if unread else first_line(error.msg)
        )
        raise InputError(f"{name}:{error.lineno}: {message}") from None
    except tokenize.TokenError as error:
        raise InputError(f"{name}:{error.args[1][0]}: {error.args[0]}") from None


def _without_includes(text: str, statements: list) -> str:
    """Blanks the include lines, which `_read` has followed; line numbers stay."""
    lines = text.splitlines()
    for statement in statements:
        if isinstance(statement, config_parser.IncludeStatement):
            lines[statement.location.line_num - 1] = ""
    return "\n".join(lines) + "\n"


def _binding_sources(bindings: Sequence[str], sources: list[_Source]) -> list[_Source]:
    """Returns the bindings as sources that import all that the files import."""
    imports = [
        statement
        for source in sources
        for statement in source.statements
        if isinstance(statement, config_parser.ImportStatement)
    ]
    lines = [f"from __gin__ import {_DYNAMIC.split('.')[1]}"]
    lines += [s.format() for s in imports if not s.module.startswith("__gin__.")]
    header = "\n".join(dict.fromkeys(lines)) + "\n"
    results = []
    for binding in bindings:
        name = f"binding {binding!r}"
        try:
            own = _parse(name, binding)
        except InputError as error:
            raise InputError(str(error).replace(f"{name}:1:", f"{name}:")) from None
        if not own or not all(isinstance(s, config_parser.BindingStatement) for s in own):
            raise InputError(f"{name}: write module.Name.parameter = value")
        text = header + binding + "\n"
        results.append(_Source(name, False, text, _parse(name, text)))
    return results


def _check(sources: list[_Source]) -> set[Callable]:
    """Checks every name of the sources; returns the configurables whose parameters they bind."""
    final = {}  # (scope, configurable, parameter) -> (value, the name as written, where)
    defined, used = {}, {}  # macro -> where it is first defined, referred to
    for statement, modules, at in _bindings(sources):
        scope, selector, parameter, value, _ = statement
        written = _written(statement)
        if parameter:
            configurable = _resolve(selector, modules, at)
            _check_parameter(configurable, statement, at)
            final[scope, configurable, parameter] = value, written, at
        else:
            defined.setdefault(written, at)
            final["", gin_config.macro, written] = value, written, at
        for reference in _references(value):
            if reference.is_macro:
                used.setdefault(reference.name, at)
            else:
                _resolve(reference.name.split("/")[-1], modules, at)

    for name, at in used.items():
        if name not in defined and name != _REQUIRED.name:
            raise InputError(f"{at}: no macro {name!r} is defined{_nearest(name, defined)}")
    for name, at in defined.items():
        if name not in used:
            raise InputError(f"{at}: macro {name!r} is never used{_nearest(name, used)}")
    for name in defined.keys() - _reachable_macros(final):
        del final["", gin_config.macro, name]
    for value, written, at in final.values():
        if value == _REQUIRED:
            raise InputError(f"{at}: {written} is required; give it with '{written} = ...'")
    return {configurable for _, configurable, _ in final}


def _bindings(sources: list[_Source]) -> Iterator[tuple]:
    """Yields every binding, the modules that its source imports, and where it is."""
    for source in sources:
        modules = _modules(source)
        for statement in source.statements:
            if isinstance(statement, config_parser.BindingStatement):
                yield statement, modules, source.at(statement)


def _written(binding: config_parser.BindingStatement) -> str:
    """Returns the left side of a binding: scope/selector.parameter, or the macro's name."""
    name = ".".join(filter(None, (binding.selector, binding.arg_name)))
    return "/".join(filter(None, (binding.scope, name)))


def _modules(source: _Source) -> dict[str, Any]:
    """Returns the modules that a source imports, by the name that it gives them."""
    imports = [s for s in source.statements if isinstance(s, config_parser.ImportStatement)]
    if not any(statement.module == _DYNAMIC for statement in imports):
        for statement in source.statements:
            if isinstance(statement, config_parser.BindingStatement) and (
                statement.arg_name or not all(r.is_macro for r in _references(statement.value))
            ):
                raise InputError(
                    f"{source.at(statement)}: put `from __gin__ import dynamic_registration` "
                    "and imports of what the file names on its first lines"
                )
    return {
        statement.bound_name(): _import(statement, source.at(statement))
        for statement in imports
        if not statement.module.startswith("__gin__.")
    }


def _import(statement: config_parser.ImportStatement, at: str) -> Any:
    """Imports the module of an import statement as gin does."""
    try:
        fromlist = [""] if statement.is_from or statement.alias else None
        return __import__(statement.module, fromlist=fromlist)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{statement.module}.".startswith(f"{missing}."):
            raise InputError(f"{at}: cannot import {statement.module}: {error}") from None
        parent, _, name = missing.rpartition(".")
        folders = getattr(sys.modules.get(parent), "__path__", None)
        if parent and folders is None:
            raise InputError(
                f"{at}: {parent} is a module; import it and write {parent.split('.')[-1]}.{name}"
            ) from None
        known = [module.name for module in pkgutil.iter_modules(folders)]
        raise InputError(f"{at}: no module {missing!r}{_nearest(name, known)}") from None
    except ImportError as error:
        raise InputError(f"{at}: cannot import {statement.module}: {error}") from None


def _resolve(selector: str, modules: dict[str, Any], at: str) -> Callable:
    """Returns the class or function that a dotted name of a gin file stands for."""
    first, *rest = selector.split(".")
    if first == "gin":
        modules = {"gin": gin_config}  # gin.singleton
    if first not in modules:
        known = {name: name for name in modules}
        for name, module in modules.items():
            known |= {other: f"{name}.{other}" for other in _configurables(module)}
        raise InputError(f"{at}: nothing imported is named {first!r}{_nearest(first, known)}")
    found, path = modules[first], first
    for name in rest:
        if not hasattr(found, name):
            near = _nearest(name, _configurables(found))
            raise InputError(f"{at}: {path} has no {name!r}{near}")
        found, path = getattr(found, name), f"{path}.{name}"
    if not callable(found):
        raise InputError(f"{at}: {path} is neither a class nor a function")
    return found


def _configurables(module: Any) -> list[str]:
    """Returns what a gin file may name in a module: its public classes, functions and modules."""
    return [
        name
        for name in dir(module)
        if not name.startswith("_")
        and (callable(getattr(module, name, None)) or inspect.ismodule(getattr(module, name, None)))
    ]


def _check_parameter(what: Callable, statement: config_parser.BindingStatement, at: str) -> None:
    """Raises InputError if a bound parameter does not exist."""
    parameters = inspect.signature(what).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if statement.arg_name not in parameters and not takes_any:
        near = _nearest(statement.arg_name, parameters)
        raise InputError(f"{at}: {statement.selector} has no {statement.arg_name!r}{near}")


def _references(value: Any) -> Iterator[_Reference]:
    """Yields the references anywhere in a bound value."""
    if isinstance(value, _Reference):
        yield value
    elif isinstance(value, dict):
        yield from _references([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _references(item)


def _reachable_macros(final: dict) -> set[str]:
    """Returns the macros that the final bindings refer to, directly or through macros."""
    waiting = [value for (_, what, _), (value, *_) in final.items() if what != gin_config.macro]
    reachable = set()
    while waiting:
        for reference in _references(waiting.pop()):
            if reference.is_macro and reference != _REQUIRED and reference.name not in reachable:
                reachable.add(reference.name)
                waiting.append(final["", gin_config.macro, reference.name][0])
    return reachable


def _forget_unreachable_macros() -> None:
    """Drops macros whose last reference was overridden: in `resolved()` they would be unused."""
    config = gin_config._CONFIG
    while True:
        used = {reference.config_key for reference in gin_config.iterate_references(config)}
        unused = [key for key in config if key[1] == "gin.macro" and key not in used]
        if not unused:
            return
        for key in unused:
            del config[key]


def _build(target: Callable, path: str) -> Any:
    """Calls target under gin; gin adds lines to the message of what is raised inside."""
    try:
        return gin.get_configurable(target)()
    except InputError as error:
        raise InputError(f"{path}: {first_line(error)}") from None
    except TypeError as error:
        missing = re.match(
            r"([\w.]+?)(?:\.__init__)?\(\) missing \d+ required .*?: (.*)", str(error)
        )
        name = missing and missing[1].split(".")[-1]
        if not missing or f"In call to configurable '{name}'" not in str(error):
            raise
        raise InputError(f"{path}: {name} needs a value for {missing[2]}") from None


def _named(name: str, text: str) -> io.StringIO:
    """Returns the text as the open file that gin takes, with the name for gin's messages."""
    file = io.StringIO(text)
    file.name = name
    return file


def _nearest(name: str, known: Iterable[str]) -> str:
    """Returns what to add to "there is no such name": the nearest known name, or a few."""
    known = known if isinstance(known, dict) else {other: other for other in known}
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {known[close[0]]!r}?"
    return f"; there are: {', '.join(known.values())}" if 0 < len(known) <= 20 else ""
