"""The pages' commands: each is one of the real command line, and what can run on little data runs."""

import argparse
import importlib.util
import json
import pathlib
import re
import runpy
import shlex
import sys

import pytest
from absl import app, flags

from kmax_tf import config
from kmax_tf.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "docs/demo.ipynb"]
# Whole commands, not mentions: of fenced blocks, indented lines and `python ...` in a sentence.
FENCED = r"```bash\n(.*?)```"
INDENTED = r"^    ((?:python |scripts/)(?:[^\n]*\\\n)*[^\n]*)"
INLINE = r"`(python [^`.]+[^`]*)`"


class Parsed(Exception):
    """Ends a program once its flags are parsed: the flags, and the words that are none."""


def blocks(page):
    """The texts of a page that hold commands."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        return [re.sub("^!", "", cell, flags=re.M) for cell in cells(page) if cell.startswith("!")]
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = re.findall(INDENTED, rest, re.MULTILINE)
    return re.findall(FENCED, text, re.DOTALL) + indented + re.findall(INLINE, rest)


def cells(notebook):
    """The sources of a notebook's code cells."""
    content = json.loads(notebook.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


def commands(text):
    """The words of each command of ours in a shell text."""
    text = re.sub(r"(^|\s)#.*", "", text.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="\n;&|<>")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found, words = [], []
    for word in [*lexer, "\n"]:
        if set(word) <= set("\n;&|<>"):
            found, words = [*found, words], []
        elif words or not re.match(r"do$|then$|\w+=", word):
            words.append(word)
    return [words[words[0] == "python" :] for words in found if is_ours(words)]


def is_ours(words):
    start = r"(python )?scripts/|python -m (data_prep|kmax_tf)"
    return bool(re.match(start, " ".join(words)))


def run(words):
    """Runs a command in this process, as `python` would."""
    before, argv = {*flags.FLAGS}, sys.argv
    module = words[1] if words[0] == "-m" else None
    sys.argv = words[1:] if module else words
    try:
        if module:
            runpy.run_module(module, run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as left:
        assert not left.code, f"{words}: exit status {left.code}"
    finally:
        sys.argv = argv
        for name in {*flags.FLAGS} - before:  # the next program has flags of the same names
            delattr(flags.FLAGS, name)


@pytest.fixture
def parse(monkeypatch):
    """A function: the words of a command -> its flags, without what it does."""
    whole = argparse.ArgumentParser.parse_known_args

    def of_argparse(self, args=None, namespace=None):
        namespace, rest = whole(self, args, namespace)
        raise Parsed(vars(namespace), [] if getattr(namespace, "runner", None) else rest)

    def of_absl(main, argv=None):
        rest = flags.FLAGS(sys.argv)[1:]
        raise Parsed(flags.FLAGS.flag_values_dict(), rest)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", of_argparse)
    monkeypatch.setattr(app, "run", of_absl)

    def parse(words):
        with pytest.raises(Parsed) as ended:
            run(words)
        found, rest = ended.value.args
        assert not rest, f"{words}: {rest} are no flags"
        return found

    return parse


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page, parse):
    """Flags exist and have what they need; experiments exist, and take the bindings."""
    for words in [words for text in blocks(page) for words in commands(text)]:
        if words[0] == "-m" and len(words) == 2:
            assert importlib.util.find_spec(words[1])
        elif not words[0].endswith(".py") and words[0] != "-m":
            script = (ROOT / words[0]).read_text()
            names = [word.split("=")[0] for word in words if word.startswith("--")]
            assert all(re.search(rf"{name}\b", script) for name in names), words
        else:
            found = parse(words)
            own = page.parent / (found.get("gin_file") or "none")
            if found.get("gin_file") and f"`{own.name}`" not in page.read_text():
                classes = ["datasets.load.source = 'coco'"] * ("own" in own.name)
                config.load(Experiment, str(ROOT / found["gin_file"]), [*found["gin"], *classes])


def test_what_is_not_a_command_of_ours_fails(parse):
    """Else the tests above could not fail."""
    [words] = commands("TF_CONFIG='{\n}' python scripts/train.py --gin_file=x \\\n  --run_dir=y &")
    assert words == ["scripts/train.py", "--gin_file=x", "--run_dir=y"]
    assert parse(words)["gin_file"] == "x"
    with pytest.raises(flags.UnrecognizedFlagError):
        parse([*words, "--steps=3"])
    with pytest.raises(flags.IllegalFlagValueError):
        parse(["scripts/train.py", "--run_dir=y"])
    with pytest.raises(AssertionError):
        parse(["-m", "data_prep.coco_format", "--nothing"])
