"""Divides images at random into training and validation."""

import collections
from collections.abc import Sequence

import numpy as np

from kmax_tf import errors


def check(share: float, seed: int) -> None:
    """Raises InputError unless `choose_validation` takes a share and a seed."""
    if not 0 < share < 1:
        raise errors.InputError(f"--val_share {share}: choose a number between 0 and 1, e.g. 0.15")
    if seed < 0:
        raise errors.InputError(f"--seed {seed}: choose a whole number from 0")


def choose_validation(digests: Sequence[str], share: float, seed: int) -> list[bool]:
    """Chooses the images of the validation split.

    Images with the same digest are on the same side, so that no image of the validation is
    trained on. For this the share may be missed by a few images.

    Args:
        digests: of the content of each image, in an order that is the same every time.
        share: wanted share of the validation, between 0 and 1.
        seed: seed of the choice, from 0.

    Returns:
        For each image, whether it is of the validation.

    Raises:
        InputError: one of the sides would be empty.
    """
    groups = collections.defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    twins = list(groups.values())
    wanted = max(1, round(share * len(digests)))
    chosen: set[int] = set()
    for number in np.random.default_rng(seed).permutation(len(twins)):
        group = twins[number]
        if len(chosen) + len(group) <= wanted and len(chosen) + len(group) < len(digests):
            chosen.update(group)
    if not chosen:
        raise errors.InputError(
            f"{len(digests)} images, {len(twins)} of them different: too few for --val_share"
            f" {share}; give more images, a larger share, or a validation set of your own"
        )
    return [index in chosen for index in range(len(digests))]
