"""The command `kmax`: every verb, one line for a mistake, and a wheel that needs no clone."""

import configparser
import os
import pathlib
import re
import subprocess
import sys

import pytest

from kmax_tf import commands

ROOT = pathlib.Path(__file__).parents[2]


def kmax(*words, **options):
    command = [sys.executable, "-m", "kmax_tf.commands", *words]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_every_verb_and_format_is_a_program():
    for folder, names in (
        ("commands", commands.VERBS.keys() - {"prepare"}),
        ("commands/prepare", commands.FORMATS.keys()),
    ):
        modules = {p.stem for p in (ROOT / "kmax_tf" / folder).glob("*.py")}
        assert {m for m in modules if not m.startswith("_")} == names
    shown = kmax("--help").stdout, kmax("prepare", "--help").stdout
    for text, names in zip(shown, (commands.VERBS, commands.FORMATS), strict=True):
        assert re.findall(r"^  (\w+) ", text, re.M) == list(names)


@pytest.mark.parametrize("name", commands.FORMATS)
def test_help_and_mistakes_of_formats_need_no_tensorflow(name):
    """tests/test_command_line.py does the same with the verbs."""

    def run(word):
        lines = "import sys; sys.modules['tensorflow'] = None; from kmax_tf import commands"
        command = [sys.executable, "-c", f"{lines}; commands.main(sys.argv[1:])"]
        return subprocess.run([*command, "prepare", name, word], capture_output=True, text=True)

    shown, refused = run("--help"), run("--outt=x")
    assert shown.returncode == 0 and f"usage: kmax prepare {name} " in shown.stdout
    assert refused.returncode == 1
    assert refused.stderr == "error: no flag --outt; did you mean --out?\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "error: no verb 'trian'; did you mean train?"),
        (["xyz"], "error: no verb 'xyz'; see kmax --help"),
        (["prepare", "coco_instance"], "error: no format 'coco_instance'; did you mean"),
        (["report", "run", "--out=x"], "error: --out needs two runs"),
        (["train", "--gin_fil=x"], "error: no flag --gin_fil; did you mean --gin_file?"),
    ],
)
def test_mistakes(words, line):
    done = kmax(*words)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kmax pre", {"predict", "prepare"}),
        ("kmax prepare coco_", {"coco_instances", "coco_format"}),
        ("kmax train --gin", {"--gin", "--gin_file"}),
        ("kmax train --once=1 --gin_f", {"--gin_file"}),
        ("kmax prepare demo --num_t", {"--num_train"}),
        ("kmax prepare coco --sou", {"--source"}),
        ("kmax prepare coco --source=coco --out=records --sh", {"--shards"}),
        ("kmax train --gin_file=gin/experiments/demo", {"--gin_file=gin/experiments/demo.gin"}),
    ],
)
def test_tab(tmp_path, line, words):
    """Asks as the shell function of argcomplete does."""
    answer = tmp_path / "answer"
    shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    shell |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    kmax(env=os.environ | shell, cwd=ROOT)
    assert {word.strip() for word in answer.read_text().split("\013")} == words


def test_a_wheel_gets_every_folder():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = set(config["options"]["packages"].split())
    folders = {p.parent for top in ("kmax_tf", "data_prep") for p in (ROOT / top).rglob("*.py")}
    gin = {p.parent for p in (ROOT / "gin").rglob("*.gin")}
    expected = {f.relative_to(ROOT).as_posix().replace("/", ".") for f in folders}
    expected |= {"kmax_tf." + f.relative_to(ROOT).as_posix().replace("/", ".") for f in gin}
    assert packages == expected
