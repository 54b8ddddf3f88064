"""The command line of every program: flags, error messages, exit status.

This module does not import TensorFlow. The scripts import it inside `main`, because that takes
seconds: `--help` and a misspelled flag are answered at once.
"""

import argparse
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kmax_tf.errors import InputError, closest, file_system_reason


def positive(text: str) -> int:
    """Returns a flag's whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


COMMON: dict[str, dict[str, Any]] = {
    "gin_file": {"help": "gin file of the experiment"},
    "gin": {
        "action": "append",
        "default": [],
        "metavar": "BINDING",
        "help": "override a binding: MODULE.CLASS.PARAMETER=VALUE; repeatable",
    },
    "run_dir": {"help": "folder of the run"},
    "checkpoint": {"help": "path of a checkpoint; default: the newest"},
    "device": {
        "default": "auto",
        "help": "auto, cpu, gpu, tpu:NAME or local (this host's TPU)",
    },
    "input_size": {
        "nargs": 2,
        "type": positive,
        "metavar": ("H", "W"),
        "help": "height and width in pixels; default: the evaluation's",
    },
    "json": {"action": "store_true", "help": "print JSON"},
    "workers": {"type": positive, "help": "number of processes; default: one per core"},
}


class Parser(argparse.ArgumentParser):
    """Parses flags by their full names and raises an InputError for a mistake.

    A `~` at the start of a value is the home folder, also where the shell leaves it: `--out=~/x`.
    """

    def __init__(
        self, documentation: str, required: Sequence[str] = (), optional: Sequence[str] = ()
    ):
        """Makes a parser.

        Args:
            documentation: Text of `--help`.
            required: Names in `COMMON` of flags that must be given.
            optional: Names in `COMMON` of further flags.
        """
        self.flags, self.words = [], []
        super().__init__(
            description=documentation,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for name in (*required, *optional):
            self.add_argument(f"--{name}", required=name in required, **COMMON[name])

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Adds an argument; its help ends with the default, if that is a number or a word."""
        default = settings.get("default", "")
        if isinstance(default, (str, int, float)) and default not in ("", argparse.SUPPRESS):
            settings["help"] += f"; default: {default}"
        self.flags += [name[2:] for name in names if name.startswith("--")]
        return super().add_argument(*names, **settings)

    def complete(self) -> None:
        """Completes the word under the cursor and ends the process, if the shell asks for that."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_intermixed_args(args, namespace)  # images after a flag, too

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.words = sys.argv[1:] if args is None else args
        options, others = super().parse_known_args(args, namespace)
        for name, value in vars(options).items():
            values = value if isinstance(value, list) else [value]
            if "" in values and self.get_default(name) != "":  # as of --run_dir=$UNSET
                flag = f"--{name}" if name in self.flags else name
                raise InputError(f"argument {flag}: is empty; give a value, or leave it out")
            setattr(options, name, _expanded(value))
        return options, others

    def error(self, message: str) -> None:
        """Raises an InputError; a misspelled flag comes first: it may be the required one."""
        for name in (word[2:].split("=")[0] for word in self.words if word.startswith("--")):
            if (near := closest(name, self.flags)) not in (None, name):
                raise InputError(f"no flag --{name}; did you mean --{near}?")
        raise InputError(f"{message}; see --help")


def _expanded(value: Any) -> Any:
    """Returns a value, or a list of them, with the home folder for a `~` at the start."""
    if isinstance(value, list):
        return [_expanded(entry) for entry in value]
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"argument {value!a}: is not UTF-8; rename the file or folder") from None
    return os.path.expanduser(value)


def run(main: Callable[[Any], None], parse: Callable[[], Any]) -> None:
    """Runs `main(parse())`; an InputError becomes a line `error: ...` and exit status 1.

    So does a refusal of the file system, such as a full disk.
    """
    faulthandler.enable(sys.__stderr__)  # a crash of TensorFlow shows the lines of Python
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # deprecated operations are intended
    try:
        main(parse())
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; rerun the command to retry")
    except Exception as error:
        reason = file_system_reason(error)
        if not reason:
            raise
        sys.exit(f"error: {reason}")
