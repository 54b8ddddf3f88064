"""From raw labels to records in one command: the part that all forms of labels share.

A form reads its folders into a `RawDataset`. This file writes, in worker processes,

    OUT/train.json OUT/train_labels/  OUT/val.json OUT/val_labels/    COCO panoptic format
    OUT/train_images/ OUT/val_images/   if records do not hold a format: the images, as PNG
    OUT/validation/train/ OUT/validation/val/     what `kmax validate` writes
    OUT/records/                                  TFRecord and dataset.json

Errors of the validation stop before the records are written.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from data_prep import coco_format, convert, label_writer, random_split, raw_dataset, validate
from kmax_tf import errors, files
from kmax_tf.data import datasets

SPLITS = "train", "val"
MARK = "made_by_kmax_prepare.txt"  # in a folder whose files may be replaced


def run(options: Any, inputs: Sequence[str], read: Callable[[Any], raw_dataset.RawDataset]) -> None:
    """Makes the records of a dataset.

    Args:
        options: flags of kmax_tf/commands/prepare/_own_dataset.py and of the form.
        inputs: names of the flags that are folders or files to read.
        read: flags -> what the form lists.
    """
    _check_outputs(options, inputs)
    random_split.check(options.val_share, options.seed)
    make(read(options), options.out, options.val_share, options.seed, options.workers)


def make(
    raw: raw_dataset.RawDataset, out: str, val_share: float, seed: int, workers: int | None
) -> None:
    """Writes labels, validation and records of a dataset, and prints what it did.

    Args:
        raw: the dataset.
        out: folder to write into.
        val_share: share of the validation, between 0 and 1, if `raw` has one listing.
        seed: seed of that choice, from 0.
        workers: number of processes, None for one per core.

    Raises:
        InputError: a file is wrong, the validation found errors, or `out` has files of somebody
            else in the places of those to write.
    """
    records = os.path.join(out, "records")
    dataset = datasets.Dataset(os.path.basename(os.path.abspath(out)), raw.categories)
    _check_records(records, dataset)
    pictures = [raw_dataset.look_at_all(listing, workers) for listing in raw.listings]
    if len(pictures) == 1:
        pictures = raw_dataset.divide(pictures[0], val_share, seed)
        print(f"random split: --val_share {val_share} --seed {seed}")
    folders = [raw.listings[0].images, raw.listings[-1].images]
    shares = list(map(label_writer.place, [out, out], SPLITS, folders, pictures))
    _claim(out)
    written = [
        label_writer.write(raw, share, found, workers)
        for share, found in zip(shares, pictures, strict=True)
    ]
    _tell_images(shares, pictures)
    _tell_labels(raw, written)
    for split, share in zip(SPLITS, shares, strict=True):
        _validate(share, os.path.join(out, "validation", split), workers)
    items = {
        split: coco_format.read([share.images], [share.json], [share.labels])[0]
        for split, share in zip(SPLITS, shares, strict=True)
    }
    for split, size in convert.convert_together(items, dataset, records, workers).items():
        print(f"{records}: split {split}, {size.num_examples} images, {size.num_shards} shards")


def _outputs(out: str) -> list[str]:
    """The paths that `make` writes, and replaces."""
    names = [f"{split}{end}" for split in SPLITS for end in ("_labels", "_images", ".json")]
    return [os.path.join(out, name) for name in (*names, "records", "validation")]


def _claim(out: str) -> None:
    """Marks a folder as made by `make`; InputError if files of somebody else would be replaced."""
    mark = os.path.join(out, MARK)
    if tf.io.gfile.exists(mark):
        return
    for place in _outputs(out):
        if tf.io.gfile.exists(place):
            raise errors.InputError(
                f"{place}: exists, and this version of `kmax prepare` did not make it; choose"
                " another --out"
            )
    names = ", ".join(map(os.path.basename, _outputs(out)))
    files.write_atomic(mark, f"kmax prepare makes and replaces here: {names}\n")


def _check_outputs(flags: Any, inputs: Sequence[str]) -> None:
    """Raises InputError if something to read is where files will be written."""
    for name in inputs:
        path = getattr(flags, name)
        for place in _outputs(flags.out):
            if path and f"{os.path.realpath(path)}/".startswith(f"{os.path.realpath(place)}/"):
                raise errors.InputError(
                    f"--{name} {path}: would be overwritten by {place}; choose another --out"
                )


def _check_records(folder: str, dataset: datasets.Dataset) -> None:
    """Raises InputError if the folder has records of other classes."""
    if not tf.io.gfile.exists(os.path.join(folder, datasets.FILE_NAME)):
        return
    if not datasets.same_classes(datasets.load(folder).categories, dataset.categories):
        raise errors.InputError(
            f"{folder}: has records of other classes; delete this folder, or choose another --out"
        )


def _tell_images(
    shares: list[label_writer.Share], pictures: list[list[raw_dataset.Picture]]
) -> None:
    """Prints the sizes of the splits, and which images are twice in the dataset."""
    for share, found in zip(shares, pictures, strict=True):
        print(f"{share.json}: {len(found)} images from {share.raw}")
        if share.images != share.raw:
            print(f"{share.images}: copies of them, PNG for what is neither JPEG nor PNG")
    digests = [{picture.facts.digest for picture in found} for found in pictures]
    if shared := len(set.intersection(*digests)):
        print(f"warning: {shared} images are in both training and validation")
    if copies := sum(map(len, pictures)) - sum(map(len, digests)):
        print(f"{copies} images are duplicates within their split")


def _tell_labels(raw: raw_dataset.RawDataset, written: list[label_writer.Written]) -> None:
    """Prints the segments of each class, and what was left out or changed."""
    print(f"{'class':30}{'':7}{'color':9}" + "".join(f"{split:>10}" for split in SPLITS))
    for category in raw.categories:
        kind = "thing" if category.isthing else "stuff"
        color = "#{:02x}{:02x}{:02x}".format(*category.color)
        numbers = "".join(f"{made.segments[category.id]:10}" for made in written)
        print(f"{category.name:30.30}{kind:7}{color:9}{numbers}  segments")
    names = {category.id: category.name for category in raw.categories}
    print(f"all other pixels: {names.get(raw.background, 'void')}")
    for remark in raw.remarks:
        print(remark)
    notes = sum((made.notes for made in written), raw.notes)
    for text, count in notes.items():
        print(f"{count:12,} {text}")


def _validate(share: label_writer.Share, out: str, workers: int | None) -> None:
    """Validates a split; InputError if it has errors."""
    found = validate.raw(share.images, share.json, share.labels)
    text, count = validate.validate(found, out, workers)
    print(text)
    if count:
        raise errors.InputError(
            f"{out}/report.txt: lists {count} errors; correct the files that they name, then run"
            " the same command again"
        )
