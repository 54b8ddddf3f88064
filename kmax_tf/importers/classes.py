"""Which channel of another model's head is which class of ours.

Class indices here: things in the order of the table, then stuff by id, void last. Official code
numbers the classes of a dataset by the rank of their ids, and has three orders of channels:

    things_first       as here
    by_id              rank of the id, void last
    by_id_void_first   void, then rank of the id; without void where there is no channel for it
"""

import numpy as np

from kmax_tf.data.datasets import Dataset


def channels(dataset: Dataset, order: str, count: int) -> list[int | None]:
    """Returns the channel of each class of `dataset`, and of void after them (None: has none).

    Args:
      order: one of the orders above.
      count: channels of the head, which may have one for void or not.

    Raises:
      ValueError: a head of `dataset` does not have that many channels.
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
    """Returns for each channel of our head the channel of theirs, -1 where they have none.

    Classes are the same if their names are.

    Raises:
      ValueError: as `channels`.
    """
    their_channels = channels(theirs, order, their_count)
    by_name = {c.name: k for c, k in zip(theirs.categories, their_channels)}
    found = [by_name.get(category.name) for category in ours.categories]
    found = (found + [their_channels[-1]])[:our_count]
    return np.array([-1 if channel is None else channel for channel in found])
