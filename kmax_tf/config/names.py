"""Checks the names of gin statements, and resolves them."""

import inspect
import pkgutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from gin import config_parser as parser

from kmax_tf.config.statements import DYNAMIC, Source, references
from kmax_tf.errors import InputError, nearest


class Bound(NamedTuple):
    """A binding whose names are resolved."""

    at: str
    is_file: bool
    scope: str
    selector: str
    configurable: Callable
    parameter: str
    references: list[tuple[str, Callable]]  # scope and configurable


def check(sources: list[Source]) -> list[Bound]:
    """Checks every name of the sources; returns their bindings."""
    bound = []
    for source in sources:
        imports = {s.format(): s for s in source.of_kind(parser.ImportStatement)}
        dynamic = imports.pop(DYNAMIC, None)
        modules = {s.bound_name(): _import(s, source.at(s)) for s in imports.values()}
        for statement in source.of_kind(parser.BindingStatement):
            if not dynamic:
                raise InputError(
                    f"{source.at(statement)}: put `{DYNAMIC}` and imports of the names below on "
                    "the first lines of the file"
                )
            bound.append(_check_binding(statement, modules, source))
    return bound


def _check_binding(binding: Any, modules: dict[str, Any], source: Source) -> Bound:
    """Checks the names of one binding, and resolves them."""
    at, names, resolved = source.at(binding), list(references(binding.value)), []
    if not binding.arg_name or any(name.startswith("%") for name in names):
        raise InputError(f"{at}: macros are unsupported; bind the parameter")
    for name in names:
        scope, _, selector = name[1:].rpartition("/")
        resolved.append((scope, _resolve(selector, modules, at)))
    configurable = _resolve(binding.selector, modules, at)
    parameters = inspect.signature(configurable).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if binding.arg_name not in parameters and not takes_any:
        near = nearest(binding.arg_name, parameters)
        raise InputError(f"{at}: {binding.selector} has no {binding.arg_name!r}{near}")
    return Bound(
        at,
        source.is_file,
        binding.scope,
        binding.selector,
        configurable,
        binding.arg_name,
        resolved,
    )


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
