"""Completes verbs, formats and flags of `kmax` on Tab, with argcomplete.

The shell asks once in a session: eval "$(register-python-argcomplete kmax)"
"""

import argparse
import os
from collections.abc import Callable, Sequence

import argcomplete
from argcomplete.lexers import split_line


def complete(dispatch: Callable[[list[str]], None], choices: Sequence[Sequence[str]]) -> None:
    """Writes what the word under the cursor may become, and ends the process.

    Args:
        dispatch: Runs a program by its words; its `command_line.Parser` completes its flags.
        choices: The verbs, and the formats of `kmax prepare`.
    """
    *_, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    del words[0]  # kmax
    depth = 2 if words[:1] == ["prepare"] else 1
    # argcomplete skips as many words before it parses the others.
    os.environ["_ARGCOMPLETE"] = str(1 + min(len(words), depth))
    if len(words) >= depth:
        dispatch(words)
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=choices[len(words)])
    argcomplete.autocomplete(parser)
