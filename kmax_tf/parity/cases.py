"""Golden cases: stored numbers of the official code, and how far ours are from them.

A case is NAME.json (facts) and NAME.npz (arrays) in FOLDER/PART; README.md in tests/golden
describes both.
"""

import collections
import io
import json
import lzma
import math
import os

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from kmax_tf import files
from kmax_tf.parity import rule

FOLDER = os.path.join(files.ROOT, "tests", "golden")  # the project's own cases


class Case(collections.UserDict):
    """One case: its `facts`, and its arrays by name; `unread` are the arrays not asked for yet."""

    def __init__(self, folder: str, part: str, name: str):
        self.folder, self.name = folder, name
        path = os.path.join(folder, part, name)
        self.facts = files.read_json(f"{path}.json")
        with np.load(io.BytesIO(files.read_bytes(f"{path}.npz"))) as arrays:
            super().__init__(dict(arrays))
        for image, (seed, shape) in self.facts.get("images_of_rule", {}).items():
            self[image] = rule.image(seed, [1, *shape])[0].astype(np.uint8)
        self.unread = set(self)

    def __getitem__(self, key):
        self.unread.discard(key)
        return super().__getitem__(key)


def case_names(folder: str, part: str) -> list[str]:
    """Returns the sorted names of a part's cases; none if the folder lacks the part."""
    paths = files.matching(os.path.join(folder, part), "*.json")
    return [os.path.basename(path).removesuffix(".json") for path in paths]


def checkpoint_shapes(folder: str, model: str) -> dict[str, list[int]]:
    """Returns the shape of every variable in the checkpoint of an official model, by its key.

    Args:
        folder: golden numbers, with checkpoint_keys.json.xz or checkpoint_keys/MODEL.json.
        model: the official name, such as "coco_axial_r50".

    Raises:
        InputError: The folder has neither file.
    """
    path = os.path.join(folder, "checkpoint_keys")
    if tf.io.gfile.exists(f"{path}.json.xz"):
        return json.loads(lzma.decompress(files.read_bytes(f"{path}.json.xz")))[model]
    entries = files.read_json(os.path.join(path, f"{model}.json"))
    return {entry["key"]: entry["shape"] for entry in entries}


class Comparison:
    """Collects for each tensor its largest deviation over its tolerance."""

    def __init__(self):
        self.ratios: dict[str, float] = {}

    def add(
        self, name: str, ours: npt.ArrayLike, stored: npt.ArrayLike, tolerance: npt.ArrayLike
    ) -> None:
        """Compares two arrays; of those added under one name, the largest deviation counts.

        A deviation is infinite where the shapes differ, or where a value is not a number.

        Args:
            name: of the tensor.
            ours: numbers of any shape.
            stored: numbers of the same shape.
            tolerance: absolute; one number, or one for each value.
        """
        ours, stored = np.asarray(ours), np.asarray(stored)
        if ours.shape != stored.shape:
            self.fail(f"{name}: shape {ours.shape} for {stored.shape}")
            return
        deviation = np.abs(ours.astype(np.float64) - stored.astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(deviation == 0, 0.0, deviation / np.asarray(tolerance, np.float64))
        worst = float(np.where(np.isnan(ratio), math.inf, ratio).max(initial=0.0))
        self.ratios[name] = max(worst, self.ratios.get(name, 0.0))

    def add_whole(self, facts: dict, ours: npt.ArrayLike, stored: npt.ArrayLike) -> None:
        """Compares a tensor with the part of it that is stored.

        Args:
            facts: its "name", "shape", "stride", "mean", "max_abs" (largest absolute value) and
                "tol" (absolute tolerance).
            ours: the whole tensor.
            stored: every stride-th value of the flattened tensor.
        """
        ours, name, tolerance = np.asarray(ours, np.float64), facts["name"], facts["tol"]
        if list(ours.shape) != facts["shape"]:
            self.fail(f"{name}: shape {list(ours.shape)} for {facts['shape']}")
            return
        flat = ours.ravel()
        self.add(name, flat[:: facts["stride"]], np.ravel(stored), tolerance)
        if flat.size:
            whole = [facts["mean"], facts["max_abs"]]
            self.add(name, [flat.mean(), np.abs(flat).max()], whole, tolerance)

    def fail(self, name: str) -> None:
        """Notes a tensor that could not be compared."""
        self.ratios[name] = math.inf

    def worst(self) -> tuple[str, float]:
        """Returns the tensor that is farthest off, and its deviation over its tolerance."""
        return max(self.ratios.items(), key=lambda entry: entry[1])
