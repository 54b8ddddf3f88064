"""Name maps translate the variable names of another codebase. Each is a JSON file in `maps`.

    | field | value |
    |---|---|
    | include | another map, whose lists come first; optional |
    | ignore | patterns of names that are no weights of the model |
    | rules | [pattern, replacement] pairs |
    | part | "pixel_encoder" if the source holds only that part of the model |
    | layout | "tensorflow" or "torch", the layout of kernels |
    | class_channels, semantic_channels | order of the channels of classes, see classes.py |
    | function | {attribute of the model: value} of the weights' own function |
    | experiments | what their experiments' names in gin/experiments begin with |
    | mean, std | of the image / 255, where the weights expect it normalized so |
    | epsilon | of batch norm, if it is not ours |

All rules are applied in order, to every match of their pattern. In a replacement <1> is group 1,
and <1-2> the number in group 1 minus 2.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kmax_tf import errors, files

MAPS = os.path.join(os.path.dirname(__file__), "maps")
PORT = "port_"  # begins the names of the experiments of the PyTorch port


@dataclasses.dataclass(frozen=True)
class NameMap:
    """A name map, with the fields described in this module's docstring."""

    ignore: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    part: str = ""
    layout: str = "tensorflow"
    class_channels: str = "things_first"
    semantic_channels: str = "by_id_void_first"
    function: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    experiments: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    epsilon: float | None = None

    def ignores(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.ignore)

    def rename(self, name: str) -> str:
        """Returns the path of our variable, or another string for an unknown name."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, lambda found, r=replacement: _fill(r, found), name)
        return name


def _fill(replacement, found):
    def group(reference):
        text, less = found[int(reference[1])], reference[2]
        return str(int(text) - int(less)) if less else text

    return re.sub(r"<(\d)(?:-(\d))?>", group, replacement)


def remedy(name_map: NameMap, gin_file: str) -> str:
    """Returns how an experiment becomes one for weights of a map."""
    name = name_map.experiments + os.path.basename(gin_file).removeprefix(PORT)
    counterpart = os.path.join("gin/experiments", name)
    if tf.io.gfile.exists(os.path.join(files.GIN_ROOT, counterpart)):
        return f"use --gin_file={counterpart}"
    if name_map.experiments:
        return "include gin/models/port.gin in the gin file, after the model"
    return "leave gin/models/port.gin out of the gin file"


def kinds() -> list[str]:
    """Lists the names of the maps."""
    return sorted(f.removesuffix(".json") for f in tf.io.gfile.listdir(MAPS) if f.endswith(".json"))


def load(kind: str) -> NameMap:
    """Reads the map of a kind of source; InputError if the kind does not exist."""
    if kind not in kinds():
        raise errors.InputError(f"no kind {kind!r}{errors.nearest(kind, kinds())}")
    content = files.read_json(os.path.join(MAPS, f"{kind}.json"))
    if "include" in content:
        base = load(content.pop("include"))
        inherited = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        for lists in ("ignore", "rules"):
            content[lists] = [*inherited[lists], *content.get(lists, [])]
        content = inherited | content
    return NameMap(**content)
