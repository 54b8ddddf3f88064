"""A dataset's classes, which of them are things, their colors, and the sizes of its splits."""

import colorsys
import dataclasses
import functools
import itertools
import json
import os
from typing import NamedTuple

import tensorflow as tf

from kmax_tf import errors, files
from kmax_tf.data import json_fields

FILE_NAME = "dataset.json"
TABLES = os.path.join(os.path.dirname(__file__), "tables")


class Category(NamedTuple):
    """One class."""

    id: int  # 0 to 2**31 - 1
    name: str
    isthing: bool
    color: tuple[int, int, int]  # RGB, each 0 to 255


class Split(NamedTuple):
    """The size of one split, and a fingerprint of its records."""

    num_examples: int
    num_shards: int
    fingerprint: str | None = None  # None for records of older versions

    def shard_lengths(self) -> list[int]:
        """Returns the number of examples of each shard; example i is in shard i % num_shards."""
        count = self.num_shards
        return [len(range(index, self.num_examples, count)) for index in range(count)]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The classes of a dataset.

    The model predicts class indices, which are positions in `categories`: first the things, 0 to
    num_things - 1, then the stuff.
    """

    name: str
    categories: tuple[Category, ...]
    # Labels of official records are rank * label_divisor + instance. The rank of void is
    # ignore_label; other ranks count the sorted category ids, from 1 if ignore_label is 0.
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


def packaged() -> list[str]:
    """Lists the names of the tables that come with the package."""
    return sorted(name.removesuffix(".json") for name in os.listdir(TABLES))


def is_packaged(dataset: Dataset) -> bool:
    """Returns whether a packaged table has the classes of a dataset."""
    return any(same_classes(load(name).categories, dataset.categories) for name in packaged())


def load(source: str) -> Dataset:
    """Reads the description of a dataset.

    Args:
        source: a packaged table ("panoptic_digits", "coco", ...), a folder of records with a
            dataset.json, or such a JSON file.

    Raises:
        InputError: `source` does not exist, or a field of the file is wrong.
    """
    source = os.path.expanduser(source)
    if source in packaged():
        path = os.path.join(TABLES, f"{source}.json")
    elif str(source).endswith(".json"):
        path = source
    elif tf.io.gfile.isdir(source):
        path = os.path.join(source, FILE_NAME)
    elif "/" in str(source):
        raise errors.InputError(f'dataset "{source}": no such folder; convert a dataset into it')
    else:
        near = errors.nearest(source, packaged())
        raise errors.InputError(f"dataset {source!r} is neither a folder nor packaged{near}")
    content = files.read_json(path)
    name = files.field(content, "name", str, path)
    official = {
        key: json_fields.integer(content, key, path)
        for key in ("label_divisor", "ignore_label")
        if key in content
    }
    return Dataset(name, parse_categories(content, path), **official)


def parse_categories(content: dict, path: str) -> tuple[Category, ...]:
    """Reads the categories of a JSON file.

    Args:
        content: parsed JSON whose "categories" have id, name, isthing and, if known, color.
            Categories without a color get distinct ones, the same every time.
        path: the file it came from, for messages.

    Returns:
        The categories in class order: things as listed, then stuff by id.

    Raises:
        InputError: a field is missing or wrong, an id is used twice, or the list is empty.
    """
    entries = files.field(content, "categories", list, path)
    if not entries:
        raise errors.InputError(f'{path}: "categories" is empty; list the classes there')
    categories = {}
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        identity = json_fields.integer(entry, "id", where)
        if identity in categories:
            raise errors.InputError(f'{where}: "id" {identity} is used twice; make ids unique')
        if not 0 <= identity < 1 << 31:
            raise errors.InputError(f'{where}: "id" {identity} is not 0 to 2^31 - 1; change it')
        name = json_fields.text(entry, "name", where)
        isthing = json_fields.flag(entry, "isthing", where)
        color = tuple(files.field(entry, "color", list, where)) if "color" in entry else None
        if color and not (len(color) == 3 and all(type(v) is int and 0 <= v < 256 for v in color)):
            raise errors.InputError(f'{where}: "color" must be three integers 0 to 255; fix it')
        categories[identity] = Category(identity, name, isthing, color)
    given = {category.color for category in categories.values()}
    fresh = (color for color in _distinct_colors() if color not in given)
    colored = [c if c.color else c._replace(color=next(fresh)) for c in categories.values()]
    things = [category for category in colored if category.isthing]
    stuff = [category for category in colored if not category.isthing]
    return (*things, *sorted(stuff))


def same_classes(first: tuple[Category, ...], second: tuple[Category, ...]) -> bool:
    """Returns whether two lists of categories are equal, apart from their colors."""
    return [category[:3] for category in first] == [category[:3] for category in second]


def check_classes(folder: str, dataset: Dataset) -> None:
    """Raises InputError if the records of `folder` have other classes than `dataset`."""
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
    """Returns one split of a folder of records; InputError if it does not exist."""
    path = os.path.join(folder, FILE_NAME)
    splits = files.field(files.read_json(path), "splits", dict, path)
    if split not in splits:
        raise errors.InputError(
            f'{path}: no split "{split}", only {", ".join(sorted(splits)) or "none"};'
            " choose one of them, or convert that split"
        )
    entry, where = splits[split], f"{path}: {split}"
    num_examples, num_shards = (json_fields.integer(entry, k, where) for k in Split._fields[:2])
    return Split(num_examples, num_shards, entry.get("fingerprint"))


def with_split(folder: str, dataset: Dataset, split: str, size: Split | None) -> str:
    """Returns the text of dataset.json of `folder` with one more split, or without it for None.

    The other splits are kept, and so is the name that the first one gave.

    Raises:
        InputError: the folder holds a split with other categories.
    """
    path = os.path.join(folder, FILE_NAME)
    name, splits = dataset.name, {}
    if tf.io.gfile.exists(path):
        known, splits = load(path), files.read_json(path).get("splits", {})
        name = known.name
        if not same_classes(known.categories, dataset.categories):
            raise errors.InputError(
                f'{path}: "categories" differ from those of split "{split}"; list the same ones in'
                " the same order, or convert the split into another folder"
            )
    splits.pop(split, None)
    return json.dumps(
        {
            "name": name,
            "categories": [category._asdict() for category in dataset.categories],
            "splits": splits | ({split: size._asdict()} if size else {}),
        },
        indent=1,
    )


def _distinct_colors():
    """Yields distinct RGB colors without end; successive ones are far apart in hue."""
    seen = set()
    for index in itertools.count():
        hue = index * 0.618034 % 1  # golden-ratio steps spread evenly, however many are drawn
        saturation, value = 0.5 + index % 5 * 0.1, 0.95 - index // 5 % 5 * 0.1
        color = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))
        if color not in seen:
            seen.add(color)
            yield color
