"""Name maps: how a variable of another code base is called here. A map is a JSON file in `maps`.

    {"include": "another map, whose lists come first; optional",
     "ignore": ["pattern of names that are no weights of the model"],
     "rules": [["pattern", "replacement"], ...],
     "part": "pixel_encoder", if the source holds that part of the model alone,
     "layout": "tensorflow" or "torch", how kernels are laid out,
     "class_channels", "semantic_channels": how channels of classes are ordered, see classes.py}

The rules are applied one after the other, each wherever its pattern is found. A replacement writes
group 1 as <1>, and the number in group 1 less 2 as <1-2>.
"""

import dataclasses
import difflib
import os
import re

import tensorflow as tf

from kmax_tf import errors, files

MAPS = os.path.join(os.path.dirname(__file__), "maps")


@dataclasses.dataclass(frozen=True)
class NameMap:
    """A map as read; see the module's text."""

    ignore: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    part: str = ""
    layout: str = "tensorflow"
    class_channels: str = "things_first"
    semantic_channels: str = "by_id_void_first"

    def ignores(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.ignore)

    def rename(self, name: str) -> str:
        """Returns the path of our variable, or some other string for a name that is unknown."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, lambda found, r=replacement: _fill(r, found), name)
        return name


def _fill(replacement, found):
    def group(reference):
        text, less = found[int(reference[1])], reference[2]
        return str(int(text) - int(less)) if less else text

    return re.sub(r"<(\d)(?:-(\d))?>", group, replacement)


def kinds() -> list[str]:
    """The names of the maps."""
    return sorted(f.removesuffix(".json") for f in tf.io.gfile.listdir(MAPS) if f.endswith(".json"))


def load(kind: str) -> NameMap:
    """Returns the map of a kind of source; InputError if there is no such kind."""
    if kind not in kinds():
        nearest = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0)[0]
        raise errors.InputError(
            f"kind {kind!r} is none of {', '.join(kinds())}; did you mean {nearest!r}?"
        )
    content = files.read_json(os.path.join(MAPS, f"{kind}.json"))
    if "include" in content:
        base = load(content.pop("include"))
        inherited = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        for lists in ("ignore", "rules"):
            content[lists] = [*inherited[lists], *content.get(lists, [])]
        content = inherited | content
    return NameMap(**content)
