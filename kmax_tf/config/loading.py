"""Builds an experiment from gin files, and writes it back as one file.

The classes and functions that a gin file names do not import gin. A file enables dynamic
registration, imports modules, includes other files, then binds parameters:

    from __gin__ import dynamic_registration
    from kmax_tf import experiment

    include "gin/data/coco.gin"

    experiment.Experiment.steps = 100

gin accepts an include that overrides the lines above it, and its error messages have many lines.
This package therefore parses and checks every statement first. gin reads the checked text
afterwards.
"""

import ast
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gin
import numpy as np
from gin import config_parser as parser

from kmax_tf import files
from kmax_tf.config.names import check
from kmax_tf.config.scopes import check_scopes, check_used
from kmax_tf.config.statements import DYNAMIC, Source, find, read, read_binding
from kmax_tf.errors import InputError, first_line


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
    path = find(gin_file, ["", files.GIN_ROOT], where="")
    sources = read(path, parents=(), done=set())
    is_alone = len(sources) == 1
    imports = [s.format() for source in sources for s in source.of_kind(parser.ImportStatement)]
    imports = list(dict.fromkeys([DYNAMIC, *imports]))
    sources += [read_binding(binding, imports) for binding in bindings]
    bound = check(sources)
    if target not in [b.configurable for b in bound]:
        raise InputError(f"{path}: binds no parameter of {target.__name__}")
    check_scopes(bound, is_alone)
    check_used(bound, target)

    gin.clear_config()
    for source in sources:
        text = re.sub(r"(?m)^[ \t]*include\b.*", "", source.text)  # `read` has followed them
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
        for s in Source("config.gin", text).of_kind(parser.BindingStatement)
    }


def binding(name: str, value: Any) -> str:
    """Returns the line that binds a value of Python.

    Args:
        name: `module.Name.parameter`.
        value: a number or text of Python, also of NumPy, a path, or a tuple, list or dictionary of
            such. A text that starts with "@" is a reference.

    Raises:
        InputError: gin cannot read the value.
    """
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and value.startswith("@"):
        return f"{name} = {value}"
    try:
        ast.literal_eval(repr(value))
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{name}: cannot read {value!r:.80}; give a finite number or a text of Python, or a"
            " tuple, list or dictionary of them"
        ) from error
    return f"{name} = {value!r}"


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
