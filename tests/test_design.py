"""docs/design.md: its layout names every source file once, the rest nothing that is not there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs/design.md").read_text()
REST = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)  # but for the layout
FOLDERS = ("kmax_tf", "data_prep", "scripts")


def named_files():
    """Paths in the layout: a line that begins with FOLDER/ is about that folder, as those after."""
    found, folder = [], ""
    for line in re.search(r"```\n(.*?)```", PAGE, re.DOTALL)[1].splitlines():
        folder, rest = re.fullmatch(r"((?:\w+/)+)?(.*)", line).groups(folder)
        words = re.findall(r"[\w.]+", rest)
        found += [folder + w for w in words if w.endswith(".py") or (ROOT / folder / w).is_file()]
    return found


def test_every_source_file_is_named_once():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    paths += [path for path in (ROOT / "scripts").iterdir() if path.suffix in ("", ".sh")]
    there = {str(path.relative_to(ROOT)) for path in paths if path.is_file()}
    named, there = named_files(), {p for p in there if not p.endswith("__init__.py")}
    assert not there - {*named}, "name them in the layout of docs/design.md"
    assert not {*named} - there and len(named) == len(there)


def test_no_other_file_is_named_that_is_not_there():
    assert not re.search(r"\w\.py\b", REST)
    paths = re.findall(r"`((?:gin|docs|data_prep|tests|kmax_tf)/[\w./]*)`", REST)
    assert paths and all((ROOT / path).exists() for path in paths)


def test_every_name_is_one_of_the_code():
    source = "\n".join(p.read_text() for f in FOLDERS for p in (ROOT / f).rglob("*.py"))
    names = {a or b for a, b in re.findall(r"`(?:\w+\.)*([A-Z]\w+)`|`\w+\.(\w+)`", REST)} - {
        "Layer"
    }
    unknown = [n for n in names if not re.search(rf"(?:class|def) {n}\b|\b{n}(?: =|:) ", source)]
    assert len(names) > 20 and not unknown
