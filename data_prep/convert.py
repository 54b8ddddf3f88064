"""From a list of images with labels to TFRecord shards: what all converters share.

A converter reads its layout into a list of `Item`; this file does the rest, in worker processes or
with Apache Beam. An interrupted conversion leaves its finished shards in <out>/<split>.partial and,
started again, makes those that are missing.
"""

import argparse
import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data_prep import beam, pool, tfds_metadata
from kmax_tf import errors, files
from kmax_tf.data import coco_panoptic, datasets
from kmax_tf.data.records import serialize, shards


class Item(NamedTuple):
    """One image to convert: where its files are, and what is said of it."""

    image_path: str
    label_path: str  # PNG of ids or of classes; "" for an image without labels
    source: str  # the file or folder that lists the image, for messages
    annotation: coco_panoptic.Annotation


def convert(
    items: list[Item],
    dataset: datasets.Dataset,
    out_dir: str,
    split: str,
    num_shards: int | None = None,
    run: Callable = pool.run,
) -> datasets.Split:
    """Writes one split as TFRecord shards and enters it in dataset.json, which is written last.

    Args:
        items: the images.
        dataset: their classes.
        out_dir: folder for the records; other splits in it stay as they are.
        split: name of the split.
        num_shards: number of files; by default one for 128 images but, for parallel reading,
            at least 8.
        run: runs a function over jobs, somewhere: pool.run or beam.run.

    Returns:
        The size of the split.

    Raises:
        InputError: something in the source is wrong. Then out_dir is left as it was, but for the
            finished shards in <split>.partial.
    """
    if not re.fullmatch(r"\w+", split):
        raise errors.InputError(f'--split "{split}": use letters, digits and "_" only')
    if not items:
        raise errors.InputError(f"{out_dir}: no images of split {split} were found to convert")
    count = min(len(items), max(8, len(items) // 128)) if num_shards is None else num_shards
    if not 1 <= count <= len(items):
        raise errors.InputError(f"--shards {count}: choose 1 to {len(items)}, the number of images")
    size = datasets.Split(len(items), count)
    content = datasets.with_split(out_dir, dataset, split, size)

    partial = os.path.join(out_dir, f"{split}.partial")
    files.make_folder(partial)
    names = [shards.name(split, index, count) for index in range(count)]
    # Strided, so that a source sorted by scene or class is mixed in every shard.
    shares = [items[index::count] for index in range(count)]
    # With a digest of what it is made of, a shard of another source is never taken for this one.
    parts = [
        os.path.join(partial, f"{name}-{hashlib.sha1(repr(share).encode()).hexdigest()[:16]}")
        for name, share in zip(names, shares, strict=True)
    ]
    run(convert_shard, list(zip(shares, parts, strict=True)))
    _replace_shards(out_dir, split, dict(zip(names, parts, strict=True)))
    files.write_atomic(os.path.join(out_dir, datasets.FILE_NAME), content)
    tfds_metadata.write(out_dir)
    tf.io.gfile.rmtree(partial)
    return size


def _replace_shards(folder: str, split: str, parts: dict[str, str]) -> None:
    """Removes the shards of a split, and moves others (name -> path) to their place."""
    for old in tf.io.gfile.listdir(folder):
        if re.fullmatch(rf"{split}-\d{{5}}-of-\d{{5}}\.tfrecord", old):
            tf.io.gfile.remove(os.path.join(folder, old))
    for name, part in parts.items():
        tf.io.gfile.rename(part, os.path.join(folder, name))


def convert_shard(items: list[Item], path: str) -> None:
    """Writes one file of records, unless it is newer than all that it is made of."""
    sources = [source for item in items for source in (item.image_path, item.label_path) if source]
    made = _modified(path)
    if made is not None and all((_modified(source) or made) < made for source in sources):
        return
    with tf.io.TFRecordWriter(f"{path}.tmp") as writer:
        for item in items:
            writer.write(convert_item(item))
    tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)


def _modified(path: str) -> int | None:
    """Returns the time of the last change of a file in nanoseconds; None if it is not there."""
    return tf.io.gfile.stat(path).mtime_nsec if tf.io.gfile.exists(path) else None


def convert_item(item: Item) -> bytes:
    """Returns the record of one image; InputError if its files and its annotation disagree."""
    image = _read_listed(item.image_path, item.source)
    where = f"{item.source}: {item.label_path or item.image_path}"
    ids = None
    if item.label_path:
        ids = coco_panoptic.decode_ids(_read_listed(item.label_path, item.source), where)
    try:
        segment_map, segments = number_labels(ids, item.annotation.segments)
        return serialize.record(
            image=image,
            filename=item.annotation.image_name,
            image_id=item.annotation.image_id,
            segment_map=segment_map,
            segment_id=[segment.id for segment in segments],
            category_id=[segment.category_id for segment in segments],
            is_crowd=[segment.is_crowd for segment in segments],
        )
    except errors.InputError as error:
        raise errors.InputError(f"{where}: {error}") from error


def number_labels(
    ids: np.ndarray | None, segments: Sequence[coco_panoptic.LabelSegment] | None
) -> tuple[np.ndarray | None, Sequence[coco_panoptic.LabelSegment]]:
    """Numbers the segments of an image.

    Args:
        ids: int32 [h, w], 0 for void; None for an image without labels.
        segments: those of the annotation; None where the ids are of a semantic map.

    Returns:
        int32 [h, w], 0 void, k the k-th segment, from 1 (None for an image without labels); and the
        segments. One without pixels whose area is not given is left out: things can hide all of it.
    """
    if ids is None:
        return None, []
    if segments is None:  # a grey PNG: 0 is void, k + 1 category k, each of them one segment
        ids = ids & 0xFF
        values = np.unique(ids[ids > 0]).tolist()
        segments = [coco_panoptic.LabelSegment(value, value - 1, False, None) for value in values]
    segment_map, pixels = coco_panoptic.number_segments(ids, segments)
    if not pixels.all():
        segments = [segment for segment, count in zip(segments, pixels, strict=True) if count]
        segment_map, _ = coco_panoptic.number_segments(ids, segments)
    return segment_map, segments


def _read_listed(path: str, source: str) -> bytes:
    """Reads a file that the source names, and says so when it cannot be read."""
    try:
        return files.read_bytes(path)
    except errors.InputError as error:
        raise errors.InputError(f'{error} ("file_name" is from {source})') from error


def list_unlabelled(folder: str, pattern: str, image_id: Callable[[str], str]) -> list[Item]:
    """Returns the images of a split without labels.

    Args:
        folder: where the images are.
        pattern: of their names below it, as "*.jpg".
        image_id: the stem of a file name -> the id of the image.

    Raises:
        InputError: there are none.
    """
    items, paths = [], sorted(tf.io.gfile.glob(os.path.join(folder, pattern)))
    if not paths:
        raise errors.InputError(f"{folder}: no {pattern} is there; check --source")
    for path in paths:
        name = os.path.relpath(path, folder)
        identity = image_id(os.path.splitext(os.path.basename(name))[0])
        annotation = coco_panoptic.Annotation(identity, name, "", ())
        items.append(Item(path, "", folder, annotation))
    return items


def parser(documentation: str, splits: tuple[str, ...] | None = None) -> argparse.ArgumentParser:
    """Returns a parser of the flags that all converters have.

    Args:
        documentation: of the converter.
        splits: the splits of the dataset, which lies in one folder; None for any.
    """
    made = argparse.ArgumentParser(description=documentation.split("\n")[0], allow_abbrev=False)
    if splits:
        text = "which, if not train and val"
        made.add_argument("--source", required=True, help="folder of the dataset")
        made.add_argument("--split", nargs="+", choices=splits, default=splits[:2], help=text)
    else:
        text = "name of the split, as train or val"
        made.add_argument("--split", nargs=1, required=True, help=text)
    made.add_argument("--out", required=True, help="folder for the records")
    made.add_argument(
        "--shards", type=int, help="number of files (one for 128 images, but at least 8)"
    )
    made.add_argument("--workers", type=int, help="number of processes (one a core)")
    made.add_argument("--runner", help="an Apache Beam runner; further flags are Beam's")
    return made


def main(made: argparse.ArgumentParser, argv: list[str] | None, read: Callable) -> int:
    """Runs a converter: read(flags, split) -> (items, dataset). Returns the exit status."""
    args, rest = made.parse_known_args(argv)
    if rest and not args.runner:
        made.error(f"unrecognized arguments: {' '.join(rest)}")
    run = functools.partial(pool.run, workers=args.workers)
    if args.runner:
        run = functools.partial(beam.run, flags=[f"--runner={args.runner}", *rest])
    try:
        for split in args.split:
            items, dataset = read(args, split)
            size = convert(items, dataset, args.out, split, args.shards, run)
            print(
                f"{args.out}: split {split}, {size.num_examples} images, {size.num_shards} shards"
            )
    except errors.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main_of_folder(
    documentation: str, splits: tuple[str, ...], read: Callable, argv: list[str] | None = None
) -> int:
    """As `main`, of a dataset that lies in one folder: read(folder, split) -> (items, dataset)."""
    return main(parser(documentation, splits), argv, lambda args, split: read(args.source, split))
