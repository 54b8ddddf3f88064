"""The command line: flags as the pages write them, and one line for a mistake."""

import os
import pathlib
import subprocess
import sys

import pytest

from kmax_tf import command_line
from kmax_tf.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
# Each parses its flags before it imports TensorFlow or JAX.
SCRIPTS = sorted(p.name for p in (ROOT / "scripts").glob("*.py") if p.name != "run_step.py")
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def parse(*words):
    parser = command_line.Parser("Does it.", ["gin_file"], ["gin", "device"])
    parser.add_argument("--once", action="store_true")
    parser.add_argument("images", nargs="*")
    return parser.parse_args(words)


def test_both_spellings_and_repeated_flags():
    given = parse("--gin_file=a.gin", "--gin", "x.y = 1", "--gin=x.z = '='", "--once", "b", "c")
    assert (given.gin_file, given.device, given.once) == ("a.gin", "auto", True)
    assert given.gin == ["x.y = 1", "x.z = '='"]
    assert given.images == ["b", "c"]
    assert parse("--gin_file", "a.gin").gin == []


def test_images_come_before_and_after_a_flag():
    given = parse("b", "--gin_file=a.gin", "c", "--device", "cpu", "d", "--once")
    assert (given.images, given.device, given.once) == (["b", "c", "d"], "cpu", True)
    with pytest.raises(InputError, match="unrecognized arguments: --steps 3; see --help"):
        parse("b", "--gin_file=a.gin", "c", "--steps", "3")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gin_fil=a.gin"], "^no flag --gin_fil; did you mean --gin_file\\?$"),
        (["--gin_file=a.gin", "--devize", "cpu"], "^no flag --devize; did you mean --device\\?$"),
        (["--gin_file=a.gin", "--onc"], "^no flag --onc; did you mean --once\\?$"),
        (["--gin_file=a.gin", "--steps=3"], "unrecognized arguments: --steps=3; see --help"),
        (["--gin_file=a.gin", "--gin"], "argument --gin: expected one argument"),
        ([], "required: --gin_file"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(InputError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    "words, name",
    [
        (["--gin_file="], "--gin_file"),
        (["--gin_file", ""], "--gin_file"),
        (["--gin_file=a.gin", "--gin="], "--gin"),
        (["--gin_file=a.gin", "b", ""], "images"),
    ],
)
def test_a_variable_that_the_shell_does_not_know(words, name):
    """Else --run_dir=$UNSET would train in the working directory."""
    with pytest.raises(InputError, match=f"^argument {name}: is empty; give a value, or leave it"):
        parse(*words)
    parser = command_line.Parser("Does it.")
    parser.add_argument("--address", default="", help="of a service")
    assert parser.parse_args(["--address="]).address == ""


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = parse("--gin_file=~/a.gin", "--gin=x.y = '~/z'", "~/b", "~", "c/~/d", "./~", "e~")
    assert given.gin_file == "/home/me/a.gin" and given.gin == ["x.y = '~/z'"]
    assert given.images == ["/home/me/b", "/home/me", "c/~/d", "./~", "e~"]


def test_a_name_that_is_not_utf_8():
    with pytest.raises(InputError, match=r"argument 'b\\udcff': is not UTF-8; rename"):
        parse("--gin_file=a.gin", os.fsdecode(b"b\xff"))


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(28, "No space left on device", "a b/c"), "a b/c; No space left on device; free"),
        (PermissionError(13, "Permission denied", "/a"), "/a; Permission denied; free space there"),
        (
            RuntimeError("{{function_node x}} /a b; Read-only file system [Op:SaveV2]\nmore"),
            "/a b; Read-only file system; free space there",
        ),
        (
            RuntimeError("File system scheme 's3' not implemented (file: 's3://a/b')"),
            r"File system scheme 's3' not implemented \(file: 's3://a/b'\); give a local or gs://",
        ),
        (
            RuntimeError(
                'Error executing an HTTP request: HTTP response code 403 with body \'{\n "error": {'
                "\n}}'\n\t when reading metadata of gs://a/b"
            ),
            "gs://a/b; HTTP response code 403; check the path, your rights and the network",
        ),
        (
            RuntimeError(
                "Error executing an HTTP request: libcurl code 6 meaning 'Couldn't resolve host "
                "name', error details: x\n\t when reading gs://a/b"
            ),
            "gs://a/b; libcurl code 6; check the path, your rights and the network",
        ),
    ],
)
def test_a_file_system_that_refuses(error, line):
    def main(options):
        raise error

    with pytest.raises(SystemExit, match=f"^error: {line}") as refused:
        command_line.run(main, dict)
    assert len(refused.value.code.splitlines()) == 1


def test_run(capsys):
    command_line.run(print, lambda: "parsed")
    assert capsys.readouterr().out == "parsed\n"
    with pytest.raises(SystemExit, match="^error: argument --gin: expected one argument"):
        command_line.run(print, lambda: parse("--gin"))


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_numbers_that_count_something_are_positive(value):
    parser = command_line.Parser("Does it.", optional=["workers", "input_size"])
    assert parser.parse_args(["--workers", "3"]).workers == 3
    with pytest.raises(InputError, match="^argument --input_size: "):
        parser.parse_args(["--input_size", "96", value])
    with pytest.raises(InputError, match="^argument --workers: "):
        parser.parse_args(["--workers", value])


def test_errors_in_the_code_keep_their_traceback():
    def main(options):
        raise ValueError("a mistake in the code")

    with pytest.raises(ValueError, match="a mistake"):
        command_line.run(main, dict)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_mistakes_need_no_tensorflow(name):
    def run(word):
        command = [sys.executable, "-c", WITHOUT_TENSORFLOW, f"scripts/{name}", word]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    shown, refused = run("--help"), run("--hel")
    assert shown.returncode == 0 and f"usage: {name}" in shown.stdout
    assert refused.returncode == 1
    assert refused.stderr == "error: no flag --hel; did you mean --help?\n"
