"""Channels of official heads become ours, and of one label set those of another."""

import pytest

from kmax_tf.data.datasets import Category, Dataset
from kmax_tf.importers import classes


def dataset(name, *categories):
    """Things come first, as everywhere; ids in any order."""
    return Dataset(name, tuple(Category(i, n, t, (0, 0, 0)) for i, n, t in categories))


# Cityscapes-like: the things have the larger ids.
TOWN = dataset("town", (24, "person", True), (26, "car", True), (7, "road", False))
PARK = dataset(
    "park", (1, "dog", True), (2, "person", True), (3, "road", False), (4, "tree", False)
)


@pytest.mark.parametrize(
    ("order", "count", "expected"),
    [
        ("things_first", 4, [0, 1, 2, 3]),
        ("by_id", 4, [1, 2, 0, 3]),
        ("by_id_void_first", 4, [2, 3, 1, 0]),
        ("by_id_void_first", 3, [1, 2, 0, None]),
    ],
)
def test_channels(order, count, expected):
    assert classes.channels(TOWN, order, count) == expected


def test_wrong_count():
    with pytest.raises(ValueError, match="5 channels for the 3 classes of town"):
        classes.channels(TOWN, "by_id", 5)


def test_two_classes_of_one_name_are_refused():
    """Else both would get the channel of the last one."""
    first, *others = TOWN.categories
    twins = Dataset("twins", (first._replace(name=others[0].name), *others))
    for ours, theirs in ((PARK, twins), (twins, TOWN)):
        with pytest.raises(ValueError, match=f"2 classes of {twins.name} have the name"):
            classes.gather(ours, theirs, "things_first", 4, 4)


def test_gather_by_name():
    assert list(classes.gather(PARK, TOWN, "things_first", 5, 4)) == [-1, 0, 2, -1, 3]
    assert list(classes.gather(PARK, TOWN, "by_id_void_first", 4, 4)) == [-1, 2, 1, -1]
    assert list(classes.gather(PARK, TOWN, "by_id_void_first", 5, 3)) == [-1, 1, 0, -1, -1]
