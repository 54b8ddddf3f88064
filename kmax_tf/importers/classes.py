"""Maps the channels of another model's head to our classes.

Our class indices are things in the order of the table, then stuff by id; void is last. Official
code ranks the classes of a dataset by id. Its heads have one of three orders of channels:

    things_first       our order
    by_id              rank of the id, void last
    by_id_void_first   void, if the head has a channel for it, then rank of the id
"""

import collections

import numpy as np

from kmax_tf.data.datasets import Dataset

ORDERS = ("things_first", "by_id", "by_id_void_first")


def channels(dataset: Dataset, order: str, count: int) -> list[int | None]:
    """Returns the channel of each class of `dataset`, then that of void, or None without one.

    Args:
        dataset: the classes of the head.
        order: one of the orders above.
        count: channels of the head, with or without void.

    Raises:
        ValueError: `count` does not fit the number of classes.
    """
    classes = dataset.num_classes
    if count not in (classes, classes + 1):
        raise ValueError(f"{count} channels for the {classes} classes of {dataset.name}")
    has_void = count > classes
    if order == "things_first":
        of_class = list(range(classes))
    else:
        ids = sorted(category.id for category in dataset.categories)
        of_class = [ids.index(category.id) for category in dataset.categories]
    if order == "by_id_void_first" and has_void:
        return [channel + 1 for channel in of_class] + [0]
    return of_class + [classes if has_void else None]


def gather(
    ours: Dataset, theirs: Dataset, order: str, our_count: int, their_count: int
) -> np.ndarray:
    """Returns the source's channel for each channel of our head, -1 for none; matched by name.

    Raises:
        ValueError: as `channels`; or several classes of a head have one name.
    """
    their_channels = channels(theirs, order, their_count)
    for dataset in (ours, theirs):
        name, times = collections.Counter(c.name for c in dataset.categories).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{times} classes of {dataset.name} have the name {name!r}; rename")
    by_name = {c.name: k for c, k in zip(theirs.categories, their_channels)}
    sources = [by_name.get(category.name) for category in ours.categories]
    sources = (sources + [their_channels[-1]])[:our_count]
    return np.array([-1 if channel is None else channel for channel in sources])
