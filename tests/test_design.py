"""docs/design.md is true: imports between the folders go down its figure, and its names exist."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs/design.md").read_text()
ROOMS = {p.stem for p in (ROOT / "kmax_tf").iterdir() if not p.stem.startswith("__")}
FIGURE = re.search(r"```\n(.*?)```", PAGE, re.DOTALL)[1]


def floors():
    """{room: its line in the figure, counted from the bottom}."""
    lines = reversed(FIGURE.splitlines())
    words = enumerate(set(re.split(r"\s{2,}", line)) for line in lines)
    return {room: floor for floor, rooms in words for room in rooms & ROOMS}


def rooms_imported(path):
    """The rooms of kmax_tf that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [start + alias.name for alias in node.names]
            yield from (n.split(".")[1] for n in names if n.startswith("kmax_tf."))


def imports():
    """(room, imported room, path) of all imports between rooms."""
    for path in sorted((ROOT / "kmax_tf").rglob("*.py")):
        room = path.relative_to(ROOT / "kmax_tf").parts[0].removesuffix(".py")
        if room != "__init__":
            yield from ((room, other, path) for other in rooms_imported(path) if other != room)


def test_imports_go_down():
    floor = floors()
    assert floor.keys() == ROOMS
    found = list(imports())
    assert len(found) > 100
    assert not [entry for entry in found if floor[entry[1]] >= floor[entry[0]]]


def test_preparing_data_needs_only_the_rooms_of_the_page():
    (line,) = re.findall(r"\* `data_prep/` .*", PAGE)
    allowed = set(re.findall(r"`(\w+)`", line))
    used = {room for p in (ROOT / "data_prep").rglob("*.py") for room in rooms_imported(p)}
    assert used == allowed


def test_prediction_needs_no_code_of_the_model():
    assert "model" not in {other for room, other, _ in imports() if room == "predict"}


def test_the_package_imports_no_program():
    for path in (ROOT / "kmax_tf").rglob("*.py"):
        programs = "scripts|tests" if "commands" in path.parts else "data_prep|scripts|tests"
        assert not re.search(rf"^\s*(from|import) ({programs})\b", path.read_text(), re.M)


def test_no_graph_is_converted_by_autograph():
    for path in (ROOT / "kmax_tf").rglob("*.py"):
        for root in re.findall(r"@tf\.function.*\n.*", path.read_text()):
            assert "do_not_convert" in root or "autograph=False" in root, path


def test_every_path_of_the_page_exists():
    paths = re.findall(r"`((?:gin|docs|data_prep|tests|kmax_tf|scripts)/[\w./]*)`", PAGE)
    assert paths and all((ROOT / path).exists() for path in paths)


def test_every_name_is_one_of_the_code():
    folders = ("kmax_tf", "data_prep", "scripts")
    source = "\n".join(p.read_text() for f in folders for p in (ROOT / f).rglob("*.py"))
    names = {a or b for a, b in re.findall(r"`(?:\w+\.)*([A-Z]\w+)`|`\w+\.(\w+)`", PAGE)}
    names -= {"Layer", "gin"}
    unknown = [n for n in names if not re.search(rf"(?:class|def) {n}\b|\b{n}(?: =|:) ", source)]
    assert len(names) > 20 and not unknown
