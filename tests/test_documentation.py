"""The pages' commands: each is one of the real command line, and what can run here runs."""

import argparse
import importlib.util
import json
import pathlib
import re
import runpy
import shlex
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

from kmax_tf import config
from kmax_tf.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "gin/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PAGES += [ROOT / "docs/demo.ipynb", ROOT / "scripts/quickstart"]
# Whole commands, not mentions: of fenced blocks, indented lines, and some in a sentence.
FENCED = r"```bash\n(.*?)```"
INDENTED = r"^    ((?:python |scripts/|kmax )(?:[^\n]*\\\n)*[^\n]*)"
INLINE = r"`(python [^`.]+[^`]*|kmax prepare \w+ --[^`]+)`"


class Parsed(Exception):
    """Ends a program after parsing, with the flags and the unknown words."""


def blocks(page):
    """The texts of a page that hold commands."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        return [re.sub("^!", "", cell, flags=re.M) for cell in cells(page) if cell.startswith("!")]
    if not page.suffix:
        return [text]
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = re.findall(INDENTED, rest, re.MULTILINE)
    return re.findall(FENCED, text, re.DOTALL) + indented + re.findall(INLINE, rest)


def cells(notebook):
    """The sources of a notebook's code cells, but for those that clone and install."""
    code = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in code if "setup" not in cell["metadata"]["tags"]]


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
    start = r"(python )?scripts/|python -m kmax_tf|(\.venv/bin/)?kmax \w"
    return bool(re.match(start, " ".join(words)))


def run(words):
    """Runs a command in this process, as `python` or the shell would."""
    argv = sys.argv
    if words[0].endswith("kmax"):
        words = ["-m", "kmax_tf.commands", *words[1:]]
    module = words[1] if words[0] == "-m" else None
    sys.argv = words[1:] if module else words
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as left:
        assert not left.code, f"{words}: exit status {left.code}"
    finally:
        sys.argv = argv


@pytest.fixture
def parse(monkeypatch):
    """A function that maps the words of a command to its flags, without running it."""
    inside = []

    def stop_after(method):
        whole = getattr(argparse.ArgumentParser, method)

        def parse_and_stop(self, args=None, namespace=None):
            if inside:  # one method calls the other
                return whole(self, args, namespace)
            inside.append(self)
            try:
                namespace, rest = whole(self, args, namespace)
            finally:
                inside.clear()
            raise Parsed(vars(namespace), [] if getattr(namespace, "runner", None) else rest)

        monkeypatch.setattr(argparse.ArgumentParser, method, parse_and_stop)

    for method in ("parse_known_args", "parse_known_intermixed_args"):
        stop_after(method)

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
        if words[0] == "scripts/run_step.py" and not importlib.util.find_spec("jax"):
            continue
        if words[0] == "-m" and len(words) == 2:
            assert importlib.util.find_spec(words[1])
        elif not words[0].endswith((".py", "kmax")) and words[0] != "-m":
            script = (ROOT / words[0]).read_text()
            names = [word.split("=")[0] for word in words if word.startswith("--")]
            assert all(re.search(rf"{name}\b", script) for name in names), words
        else:
            found = parse(words)
            own = page.parent / (found.get("gin_file") or "none")
            made = own.parent.name == "plans" or page.name == "extending.md"
            if found.get("gin_file") and not made:
                classes = ["datasets.load.source = 'coco'"] * ("own" in own.name)
                config.load(Experiment, str(ROOT / found["gin_file"]), [*found["gin"], *classes])


def test_what_is_not_a_command_of_ours_fails(parse):
    """Else the tests above could not fail."""
    [words] = commands("TF_CONFIG='{\n}' python scripts/train.py --gin_file=x \\\n  --run_dir=y &")
    assert words == ["scripts/train.py", "--gin_file=x", "--run_dir=y"]
    assert parse(words)["gin_file"] == "x"
    for wrong, message in (
        ([*words, "--stride=3"], "are no flags"),
        (["scripts/train.py", "--run_dir=y"], "required: --gin_file"),
        (["kmax", "prepare", "coco_format", "--nothing"], "required: --split"),
    ):
        with pytest.raises(AssertionError, match=message):
            parse(wrong)


def test_bindings_in_sentences_are_valid():
    """What the pages bind by `--gin="..."`, each on the experiment for own data."""
    text = "".join(page.read_text() for page in PAGES if page.suffix == ".md")
    bindings = re.findall(r'--gin="([^"\n]+)"', text)
    assert len(bindings) > 15
    for binding in bindings:
        own = [binding, "datasets.load.source = 'coco'"]
        config.load(Experiment, str(ROOT / "gin/experiments/own_dataset.gin"), own)


@pytest.fixture
def workspace(records, tiny_text, tmp_path, monkeypatch):
    """The working folder of a reader: labeled images in own/, and experiments that are quick."""
    digits = pathlib.Path(records).parent
    for split in ("train", "val"):
        shutil.copytree(digits / split, tmp_path / "own" / split)
        shutil.copytree(digits / f"panoptic_{split}", tmp_path / "own" / f"{split}_labels")
        shutil.copy(digits / f"panoptic_{split}.json", tmp_path / "own" / f"{split}.json")
    for path, place in (
        ("gin/experiments/demo.gin", "data/panoptic_digits"),
        ("plans/own.gin", "data/own"),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(tiny_text.format(records=f"{place}/records"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(name, places, without="^$"):
    """Runs a page's commands but for those of a pattern, with other words for its places."""
    texts = [t for t in blocks(ROOT / "docs" / name) if not t.startswith("# not run here")]
    for words in [words for text in texts for words in commands(text)]:
        if not re.search(without, " ".join(words)):
            run([swapped(word, places) for word in words])


def swapped(text, places):
    for place, other in places.items():
        text = text.replace(place, other)
    return text


def read(page, language):
    """The first block of a page that is in a language."""
    return re.search(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]


def test_the_reference_of_python_is_that_of_the_code():
    made = runpy.run_path(str(ROOT / "scripts/python_reference.py"))["text"]()
    assert (ROOT / "docs/python.md").read_text() == made, "run scripts/python_reference.py"


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_ten_lines_from_records_to_a_picture(workspace, records, tiny_text):
    (workspace / "data").mkdir()
    (workspace / "data/panoptic_digits").symlink_to(pathlib.Path(records).parent)
    # The plan of a run that is resumed: the data's own would train for minutes.
    (workspace / "runs/digits").mkdir(parents=True)
    plan = tiny_text.format(records="data/panoptic_digits/records")
    (workspace / "runs/digits/plan.gin").write_text(plan)
    lines = read("README.md", "python")
    namespace = {}
    exec(lines, namespace)
    assert namespace["metrics"]["num_images"] == 3
    assert namespace["result"].panoptic_map.shape == (97, 97)
    assert (workspace / "overlay.png").exists()
    assert len([*(workspace / "predictions/overlays").iterdir()]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_own_dataset_from_labels_to_pictures_and_what_other_pages_do_with_it(workspace):
    # tests/planning makes a plan, and tests/data_prep reads the other forms of labels
    places = {"photos/": "own/val"}
    run_page(
        "own_dataset.md",
        places,
        "mask_folders|label_images|class_maps|instances|kmax plan|nuclei|camvid",
    )
    assert (workspace / "data/own/validation/val/contact_sheet.png").exists()
    assert "Pictures" in (workspace / "runs/own/report.html").read_text()
    found = json.loads((workspace / "predictions/predictions.json").read_text())
    assert len(found["annotations"]) == 3
    assert len([*(workspace / "predictions/overlays").iterdir()]) == 3

    cells = swapped(read("docs/own_dataset.md", "python"), {"photos/a.png": "own/val/000001.jpg"})
    exec(cells, namespace := {})
    (image,) = (i for i in found["annotations"] if i["image_id"] == 1)
    things = sum(s["category_id"] <= 10 for s in image["segments_info"])  # digits
    assert np.asarray(Image.open("a_cells.tif")).shape == (97, 97)
    assert len(np.unique(Image.open("a_cells.tif"))) - 1 == len(namespace["things"]) == things
    places = {"runs/coco/export": "runs/own/best/export"}
    places |= {"runs/coco": "runs/own", "runs/a@1000": "runs/own@3", "runs/a@2000": "runs/own@4"}
    run_page("evaluate.md", places, "once|newest|checkpoint|_val2017|submit|test$|runs/b|benchmark")
    steps = {path.name for path in (workspace / "runs/own/eval").glob("metrics-*.json")}
    assert steps == {f"metrics-{step:08}.json" for step in (1, 2, 3, 4)}
    assert (workspace / "comparison.html").exists()
    places["runs/coco/export"] = "runs/own/export"
    run_page("export.md", places, r"serving|curl|quickstart|runs/coco/export$")
    places |= {"coco/unlabeled2017": "own/val"}
    run_page("predict.md", places, "photos|gs://|_val2017|quickstart|panoptic_digits|kmax serve")
    dataset = json.loads((workspace / "data/coco/records/dataset.json").read_text())
    assert dataset["splits"]["unlabeled"]["num_examples"] == 3

    places |= {f'"{name}"': '"own/val/000001.jpg"' for name in ("photo.jpg", "a.jpg", "b.png")}
    places['"photos"'] = '"own/val"'
    namespace = {}
    exec(swapped(read("docs/export.md", "python"), places), namespace)
    exec(swapped(read("docs/predict.md", "python"), places), namespace)
    assert namespace["result"].panoptic_map.shape == (97, 97)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_the_notebook(workspace, monkeypatch):
    shown = types.ModuleType("IPython.display")
    shown.HTML = shown.Image = lambda filename: pathlib.Path(filename).read_bytes()
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    namespace = {}
    for cell in cells(ROOT / "docs/demo.ipynb"):
        if not cell.startswith("!"):
            exec(cell, namespace)
            continue
        for words in commands(re.sub("^!", "", cell, flags=re.MULTILINE)):
            few = ["--num_train", "6", "--num_val", "3"] if "demo" in words else []
            run(words + few)
    assert namespace["metrics"]["step"] == 4 and namespace["metrics"]["num_images"] == 3
    assert namespace["result"].panoptic_map.shape == (97, 97)


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_a_backbone_in_one_file(workspace, records, monkeypatch):
    (workspace / "data/panoptic_digits").mkdir(parents=True)
    (workspace / "data/panoptic_digits/records").symlink_to(records)
    (workspace / "plain.py").write_text(read("docs/extending.md", "python"))
    (workspace / "plain.gin").write_text(read("docs/extending.md", "gin"))
    monkeypatch.syspath_prepend(workspace)
    run_page("extending.md", {"steps = 20": "steps = 2"})
    assert (workspace / "runs/plain/checkpoints/ckpt-2.index").exists()
