"""Golden cases: stored numbers of the official code, and how far ours are from them.

A case is NAME.json (facts) and NAME.npz (arrays) in FOLDER/PART; the README of the folder says what
they hold.
"""

import io
import math
import os
import types
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from kmax_tf import errors, files

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Case(Mapping):
    """One case: `facts`, and the arrays by name; it remembers which of them were read."""

    def __init__(self, folder: str, part: str, name: str):
        self.folder, self.part, self.name = folder, part, name
        path = os.path.join(folder, part, name)
        self.facts = files.read_json(f"{path}.json")
        with np.load(io.BytesIO(files.read_bytes(f"{path}.npz"))) as arrays:
            self._arrays = dict(arrays)
        self._unread = set(self._arrays)

    def __getitem__(self, key):
        self._unread.discard(key)
        return self._arrays[key]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self):
        return len(self._arrays)

    def unread(self) -> list[str]:
        """The names of the arrays that nobody has asked for."""
        return sorted(self._unread)

    def beside(self, name: str) -> str:
        """The path of what all cases share: in the folder, above it, or beside the repository."""
        shared = os.path.join(os.path.dirname(_ROOT), "shared", "golden")
        above = os.path.dirname(os.path.abspath(self.folder))
        paths = [os.path.join(place, name) for place in (self.folder, above, shared)]
        for path in paths:
            if tf.io.gfile.exists(path):
                return path
        raise errors.InputError(f"{paths[0]}: is missing; put it there")

    def rule(self) -> types.ModuleType:
        """The module rule.py, which makes weights, images and patterns from a seed."""
        path = self.beside("rule.py")
        module = types.ModuleType("rule")
        exec(compile(files.read_bytes(path), path, "exec"), module.__dict__)
        return module


def case_names(folder: str, part: str) -> list[str]:
    """The cases of a part, sorted; none if the folder lacks the part."""
    paths = tf.io.gfile.glob(os.path.join(folder, part, "*.json"))
    return sorted(os.path.basename(path).removesuffix(".json") for path in paths)


class Comparison:
    """Collects for each tensor its largest deviation over its tolerance."""

    def __init__(self):
        self.ratios: dict[str, float] = {}

    def add(
        self, name: str, ours: npt.ArrayLike, stored: npt.ArrayLike, tolerance: npt.ArrayLike
    ) -> None:
        """Compares arrays of one shape; `tolerance` is absolute, one or one for each number.

        Not a number anywhere, or another shape, is as far off as can be. A name may come again.
        """
        ours, stored = np.asarray(ours), np.asarray(stored)
        if ours.shape != stored.shape:
            self.ratios[f"{name}: shape {ours.shape} for {stored.shape}"] = math.inf
            return
        deviation = np.abs(ours.astype(np.float64) - stored.astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(deviation == 0, 0.0, deviation / np.asarray(tolerance, np.float64))
        ratio = np.where(np.isnan(ratio), math.inf, ratio)
        worst = float(ratio.max(initial=0.0))
        self.ratios[name] = max(worst, self.ratios.get(name, 0.0))

    def add_whole(self, facts: dict, ours: npt.ArrayLike, stored: np.ndarray) -> None:
        """Compares a tensor of which `stored` is flat[::stride], and facts describe the whole."""
        ours, name, tolerance = np.asarray(ours), facts["name"], facts["tol"]
        if list(ours.shape) != facts["shape"]:
            self.ratios[f"{name}: shape {list(ours.shape)} for {facts['shape']}"] = math.inf
            return
        self.add(name, ours.ravel()[:: facts["stride"]], stored.ravel(), tolerance)
        flat = ours.astype(np.float64).ravel()
        if flat.size:
            self.add(name, [flat.mean(), np.abs(flat).max()], _whole(facts), tolerance)

    def fail(self, name: str) -> None:
        """Notes a tensor that could not be compared."""
        self.ratios[name] = math.inf

    def worst(self) -> tuple[str, float]:
        """The tensor that is farthest off, and its deviation over tolerance."""
        return max(self.ratios.items(), key=lambda entry: entry[1])


def _whole(facts):
    return [facts["mean"], facts["max_abs"]]
