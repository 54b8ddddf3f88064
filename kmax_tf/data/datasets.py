"""A dataset is data: its classes, which of them are things, their colors, its splits."""

import colorsys
import dataclasses
import difflib
import functools
import itertools
import json
import os
from typing import NamedTuple

import tensorflow as tf

from kmax_tf import errors, files

FILE_NAME = "dataset.json"
TABLES = os.path.join(os.path.dirname(__file__), "tables")


class Category(NamedTuple):
    """One class. color is RGB, each 0 to 255."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


class Split(NamedTuple):
    """How much one split holds."""

    num_examples: int
    num_shards: int

    def shard_lengths(self) -> list[int]:
        """Returns the number of examples of each shard: they are dealt out in turn."""
        count = self.num_shards
        return [len(range(index, self.num_examples, count)) for index in range(count)]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The classes of a dataset.

    The class index of a category, which the model predicts, is its position in `categories`:
    0 to num_things - 1 are things, num_things to num_classes - 1 are stuff.
    """

    name: str
    categories: tuple[Category, ...]
    # Of the official records, whose labels are rank * label_divisor + instance, where rank counts
    # the sorted category ids (from 1 if ignore_label, the rank of void, is 0).
    label_divisor: int | None = None
    ignore_label: int | None = None

    @property
    def num_classes(self) -> int:
        return len(self.categories)

    @property
    def num_things(self) -> int:
        return sum(category.isthing for category in self.categories)

    @functools.cached_property
    def class_of_category(self) -> dict[int, int]:
        """Maps a category id to its class index."""
        return {category.id: index for index, category in enumerate(self.categories)}


def load(source: str) -> Dataset:
    """Returns the dataset that `source` names.

    Args:
        source: the name of a packaged table ("panoptic_digits", "coco"), a folder of records that
            holds dataset.json, or the path of such a JSON file.

    Raises:
        InputError: nothing is there, or the file is not as it should be.
    """
    packaged = sorted(name.removesuffix(".json") for name in os.listdir(TABLES))
    if source in packaged:
        path = os.path.join(TABLES, f"{source}.json")
    elif str(source).endswith(".json"):
        path = source
    elif tf.io.gfile.isdir(source):
        path = os.path.join(source, FILE_NAME)
    elif "/" in str(source):
        raise errors.InputError(f'dataset "{source}": no such folder; convert a dataset into it')
    else:
        nearest = (difflib.get_close_matches(source, packaged, n=1, cutoff=0) or packaged)[0]
        raise errors.InputError(
            f'dataset "{source}": neither a folder nor one of {", ".join(packaged)};'
            f' did you mean "{nearest}"?'
        )
    content = files.read_json(path)
    name = files.field(content, "name", str, path)
    official = {
        key: files.field(content, key, int, path)
        for key in ("label_divisor", "ignore_label")
        if key in content
    }
    return Dataset(name, parse_categories(content, path), **official)


def parse_categories(content: dict, path: str) -> tuple[Category, ...]:
    """Returns the categories of a JSON file in class order: things as listed, then stuff by id.

    Args:
        content: parsed JSON whose "categories" have id, name, isthing and, if known, color;
            categories without one get colors of their own, the same every time.
        path: the file it came from, for messages.

    Raises:
        InputError: a field is missing or wrong, an id is there twice, or there is no category.
    """
    entries = files.field(content, "categories", list, path)
    if not entries:
        raise errors.InputError(f'{path}: "categories" is empty; list the classes there')
    categories = {}
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        identity = files.field(entry, "id", int, where)
        if identity in categories:
            raise errors.InputError(f'{where}: "id" {identity} is there twice; make ids unique')
        if not 0 <= identity < 1 << 31:
            raise errors.InputError(f'{where}: "id" {identity} is not 0 to 2^31 - 1; change it')
        name = files.field(entry, "name", str, where)
        isthing = bool(files.field(entry, "isthing", int, where))
        color = tuple(files.field(entry, "color", list, where)) if "color" in entry else None
        if color and not (len(color) == 3 and all(v in range(256) for v in color)):
            raise errors.InputError(f'{where}: "color" must be three integers 0 to 255; fix it')
        categories[identity] = Category(identity, name, isthing, color)
    given = {category.color for category in categories.values()}
    fresh = (color for color in _distinct_colors() if color not in given)
    colored = [c if c.color else c._replace(color=next(fresh)) for c in categories.values()]
    things = [category for category in colored if category.isthing]
    stuff = [category for category in colored if not category.isthing]
    return (*things, *sorted(stuff))


def same_classes(first: tuple[Category, ...], second: tuple[Category, ...]) -> bool:
    """Returns whether two lists of categories are the same but for their colors."""
    return [category[:3] for category in first] == [category[:3] for category in second]


def check_classes(folder: str, dataset: Dataset) -> None:
    """Raises InputError if the records of `folder` are of other classes than `dataset`."""
    if not same_classes(load(folder).categories, dataset.categories):
        raise errors.InputError(
            f"{folder}: its classes are not those of dataset {dataset.name!r};"
            " bind datasets.load.source to the dataset of these records"
        )


def split_names(folder: str) -> list[str]:
    """Returns the names of the splits of a folder of records."""
    path = os.path.join(folder, FILE_NAME)
    return sorted(files.field(files.read_json(path), "splits", dict, path))


def read_split(folder: str, split: str) -> Split:
    """Returns the size of one split of a folder of records; InputError if it is not there."""
    path = os.path.join(folder, FILE_NAME)
    splits = files.field(files.read_json(path), "splits", dict, path)
    if split not in splits:
        raise errors.InputError(
            f'{path}: no split "{split}", only {", ".join(sorted(splits)) or "none"};'
            " choose one of them or convert it"
        )
    return Split(
        *(files.field(splits[split], key, int, f"{path}: {split}") for key in Split._fields)
    )


def with_split(folder: str, dataset: Dataset, split: str, size: Split) -> str:
    """Returns the text of dataset.json of `folder` after one more split was converted into it.

    Splits that are there already stay, and so does the name that the first one gave.

    Raises:
        InputError: the folder holds a split of other categories.
    """
    path = os.path.join(folder, FILE_NAME)
    name, splits = dataset.name, {}
    if tf.io.gfile.exists(path):
        known, splits = load(path), files.read_json(path).get("splits", {})
        name = known.name
        if not same_classes(known.categories, dataset.categories):
            raise errors.InputError(
                f'{path}: "categories" differ from those of split "{split}"; list the same in both,'
                " in one order, or convert it into another folder"
            )
    return json.dumps(
        {
            "name": name,
            "categories": [category._asdict() for category in dataset.categories],
            "splits": {**splits, split: size._asdict()},
        },
        indent=1,
    )


def _distinct_colors():
    """Yields RGB colors without end, neighbours far apart in hue, no color twice."""
    seen = set()
    for index in itertools.count():
        hue = index * 0.618034 % 1  # golden-ratio steps spread evenly however many are drawn
        saturation, value = 0.5 + index % 5 * 0.1, 0.95 - index // 5 % 5 * 0.1
        color = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))
        if color not in seen:
            seen.add(color)
            yield color
