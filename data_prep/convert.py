"""Converts a list of images with labels to TFRecord shards: the part that all converters share.

A converter reads its layout into a list of `Item`. This file does the rest, in worker processes or
with Apache Beam. An interrupted conversion leaves its finished shards in <out>/<split>.partial;
the same command makes the missing ones.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data_prep import beam, pool, tfds_metadata
from kmax_tf import errors, files
from kmax_tf.data import coco_panoptic, datasets, label_png
from kmax_tf.data.records import serialize, shards

# Of a set without anything to learn, with the number of its images.
NOTHING = 'none of the {} images has a segment that is not crowd: correct "iscrowd", or add labels'


class _Made(NamedTuple):
    """A split whose shards are made, but not yet in their place."""

    split: str
    size: datasets.Split
    parts: dict[str, str]  # name of each shard -> its path


class Item(NamedTuple):
    """One image to convert: its files and its annotation."""

    image_path: str
    label_path: str  # PNG of ids or of classes; "" for an image without labels
    source: str  # the file or folder that lists the image, for messages
    annotation: coco_panoptic.Annotation
    num_classes: int = 0  # of a PNG of classes, 0 void, k + 1 category k


def convert(
    items: list[Item],
    dataset: datasets.Dataset,
    out_dir: str,
    split: str,
    num_shards: int | None = None,
    run: Callable = pool.run,
) -> datasets.Split:
    """Writes one split as TFRecord shards, and then enters it in dataset.json.

    Args:
        items: the images.
        dataset: their classes.
        out_dir: folder for the records; other splits in it stay as they are.
        split: name of the split.
        num_shards: number of files. The default is one for 128 images, and at least 8 to read in
            parallel.
        run: runs a function over jobs: pool.run or beam.run.

    Returns:
        The size of the split, and the fingerprint of its records.

    Raises:
        InputError: the source is wrong. Then only finished shards in <split>.partial are new. Also
            if a name in `out_dir` is not UTF-8.
    """
    made = _make(items, dataset, out_dir, split, num_shards, run)
    _publish([made], dataset, out_dir)
    return made.size


def convert_together(
    items: Mapping[str, list[Item]], dataset: datasets.Dataset, out_dir: str, workers: int | None
) -> dict[str, datasets.Split]:
    """Converts the splits of one division: an interruption does not mix them with those of another.

    Args:
        items: name of each split -> its images.
        dataset: their classes.
        out_dir: as in `convert`, whose errors this raises.
        workers: number of processes, None for one per core.

    Returns:
        Name of each split -> its size.
    """
    run = functools.partial(pool.run, workers=workers)
    every = [_make(part, dataset, out_dir, split, None, run) for split, part in items.items()]
    _publish(every, dataset, out_dir)
    return {made.split: made.size for made in every}


def _make(items, dataset, out_dir, split, num_shards, run):
    """Writes one split as TFRecord shards into <split>.partial; the arguments are `convert`'s."""
    if not re.fullmatch(r"\w+", split):
        raise errors.InputError(f'--split "{split}": use letters, digits and "_" only')
    if not items:
        raise errors.InputError(
            f"{out_dir}: split {split} of the source has no images; check the source"
        )
    count = min(len(items), max(8, len(items) // 128)) if num_shards is None else num_shards
    if not 1 <= count <= len(items):
        raise errors.InputError(f"--shards {count}: choose 1 to {len(items)}, the number of images")
    size = datasets.Split(len(items), count)
    # Errors of these two come before the slow part.
    datasets.with_split(out_dir, dataset, split, size)
    files.names(out_dir, required=False)
    partial = os.path.join(out_dir, f"{split}.partial")
    files.make_folder(partial)
    names = [shards.name(split, index, count) for index in range(count)]
    # Strided, so that every shard mixes a source that is sorted by scene or class.
    shares = [items[index::count] for index in range(count)]
    # The digest of its items keeps a shard of another source from being reused.
    digests = [hashlib.sha1(repr(share).encode()).hexdigest()[:16] for share in shares]
    parts = [os.path.join(partial, "-".join(pair)) for pair in zip(names, digests, strict=True)]
    run(convert_shard, list(zip(shares, parts, strict=True)))
    contents = " ".join(files.read_bytes(_note(part)).decode().split()[1] for part in parts)
    fingerprint = hashlib.sha1(contents.encode()).hexdigest()[:16]
    size = size._replace(fingerprint=fingerprint)
    return _Made(split, size, dict(zip(names, parts, strict=True)))


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turns errors of the block, which writes `path`, into an InputError: disk full, no right."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise errors.InputError(
            f"{path}: cannot be written ({errors.first_line(error)}); free space or allow writing,"
            " then run the same command again"
        ) from error


def _publish(every: Sequence[_Made], dataset: datasets.Dataset, folder: str) -> None:
    """Moves the shards of some splits to the place of old ones, and enters them in dataset.json.

    All old ones go first: an interruption leaves a split out, but mixes none with old ones.
    """
    description = os.path.join(folder, datasets.FILE_NAME)
    present = files.names(folder, required=False)
    with _writing(folder):
        for made in every:
            files.write_atomic(description, datasets.with_split(folder, dataset, made.split, None))
            pattern = rf"{made.split}-\d{{5}}-of-\d{{5}}\.tfrecord"
            for name in filter(re.compile(pattern).fullmatch, present):
                tf.io.gfile.remove(os.path.join(folder, name))
        for made in every:
            for name, part in made.parts.items():
                tf.io.gfile.rename(part, os.path.join(folder, name))
            content = datasets.with_split(folder, dataset, made.split, made.size)
            files.write_atomic(description, content)
            tf.io.gfile.rmtree(os.path.join(folder, f"{made.split}.partial"))
        tfds_metadata.write(folder)


def convert_shard(items: list[Item], path: str) -> None:
    """Writes one file of records, unless it was made from files of the same content.

    Its note, NAME.sha1, tells the digests of these files and of the records. It is a file because
    Beam's workers return nothing.
    """
    note, temporary = _note(path), f"{path}.tmp"
    if tf.io.gfile.exists(path) and tf.io.gfile.exists(note):
        if files.read_bytes(note).decode().startswith(f"{_digest(items)} "):
            return
        tf.io.gfile.remove(note)
    source, content = hashlib.sha1(), hashlib.sha1()
    try:
        with _writing(path):
            with tf.io.TFRecordWriter(temporary) as writer:
                for item in items:
                    found = read_files(item)
                    source.update(_digest_of(found))
                    record = convert_item(item, *found)
                    content.update(hashlib.sha1(record).digest())
                    writer.write(record)
            tf.io.gfile.rename(temporary, path, overwrite=True)
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)
    files.write_atomic(note, f"{source.hexdigest()} {content.hexdigest()}")


def _note(path: str) -> str:
    return f"{path}.sha1"


def _digest(items: list[Item]) -> str:
    """Returns the SHA-1 of the content of all files of the items; their dates do not matter."""
    return hashlib.sha1(b"".join(_digest_of(read_files(item)) for item in items)).hexdigest()


def _digest_of(found: tuple[bytes, bytes]) -> bytes:
    return b"".join(hashlib.sha1(content).digest() for content in found)


def read_files(item: Item) -> tuple[bytes, bytes]:
    """Returns the content of the image file and of the label file of an item, b"" without one."""
    image = _read_listed(item.image_path, item.source)
    return image, _read_listed(item.label_path, item.source) if item.label_path else b""


def convert_item(item: Item, image: bytes, label: bytes) -> bytes:
    """Makes the record of one image from its files; InputError if they and the item disagree."""
    where = f"{item.source}: {item.label_path or item.image_path}"
    ids = None
    if item.label_path:
        semantic = item.annotation.segments is None
        ids = (label_png.decode_classes if semantic else label_png.decode_ids)(label, where)
    try:
        segment_map, segments = number_labels(ids, item.annotation.segments, item.num_classes)
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
    ids: np.ndarray | None,
    segments: Sequence[coco_panoptic.LabelSegment] | None,
    num_classes: int = 0,
) -> tuple[np.ndarray | None, Sequence[coco_panoptic.LabelSegment]]:
    """Numbers the segments of an image.

    Segments without pixels are left out if the annotation gives no area: others can hide them.

    Args:
        ids: int32 [height, width], 0 for void; None for an image without labels.
        segments: those of the annotation; None for a semantic map, whose ids are classes, 0 void
            and k + 1 category k.
        num_classes: of a semantic map.

    Returns:
        int32 [height, width], 0 void, k the k-th segment, from 1, or None for an image without
        labels; and the segments.

    Raises:
        InputError: an id has no segment, a value is no class, or a given area is not the number of
            pixels.
    """
    if ids is None:
        return None, []
    if segments is None:  # one segment for each class that is there
        values, counts = (column.tolist() for column in np.unique(ids, return_counts=True))
        if values[-1] > num_classes:
            raise errors.InputError(
                f"value {values[-1]} ({counts[-1]} pixels) is no class, 1 to {num_classes}, nor 0"
                " for void; correct the map"
            )
        segments = [
            coco_panoptic.LabelSegment(value, value - 1, False, None) for value in values if value
        ]
    segment_map, pixels = coco_panoptic.number_segments(ids, segments)
    if not pixels.all():
        segments = [segment for segment, count in zip(segments, pixels, strict=True) if count]
        segment_map, _ = coco_panoptic.number_segments(ids, segments)
    return segment_map, segments


def _read_listed(path: str, source: str) -> bytes:
    """Reads a file that the source lists; the InputError of a missing one names the source."""
    try:
        return files.read_bytes(path)
    except errors.InputError as error:
        raise errors.InputError(f'{error} ("file_name" is from {source})') from error


def list_unlabelled(folder: str, pattern: str, image_id: Callable[[str], str]) -> list[Item]:
    """Lists the images of a split without labels.

    Args:
        folder: folder of the images.
        pattern: pattern of their paths in it, such as "*.jpg".
        image_id: maps the stem of a file name to the id of the image.

    Raises:
        InputError: no file matches, or a name in the folder is not UTF-8.
    """
    items, paths = [], _matching(folder, pattern)
    if not paths:
        raise errors.InputError(f"{folder}: no file matches {pattern}; check --source")
    for path in paths:
        name = os.path.relpath(path, folder)
        identity = image_id(os.path.splitext(os.path.basename(name))[0])
        annotation = coco_panoptic.Annotation(identity, name, "", ())
        items.append(Item(path, "", folder, annotation))
    return items


def _matching(folder: str, pattern: str) -> list[str]:
    """Returns the sorted paths below `folder`, no pattern, that match `pattern`; no hidden ones."""
    first, _, rest = pattern.partition("/")
    found = files.matching(folder, first)
    paths = [path for path in found if not os.path.basename(path).startswith(".")]
    return sorted(inner for path in paths for inner in _matching(path, rest)) if rest else paths


def learns_something(folder: str, split: str) -> bool:
    """Returns whether the records of a split have a segment that is not crowd."""
    records = itertools.chain.from_iterable(map(shards.read, shards.paths(folder, split)))
    features = (tf.train.Example.FromString(record).features.feature for record in records)
    return any(0 in feature["segment/is_crowd"].int64_list.value for feature in features)


def run(options: Any, read: Callable[[str], tuple[list[Item], datasets.Dataset]]) -> None:
    """Converts the splits of a dataset, and prints what it did.

    Args:
        options: flags of kmax_tf/commands/prepare/_conversion.py.
        read: split -> its images and classes.
    """
    over = functools.partial(pool.run, workers=options.workers)
    if options.runner:
        over = functools.partial(
            beam.run, flags=[f"--runner={options.runner}", *options.beam_flags]
        )
    for split in options.split:
        items, dataset = read(split)
        size = convert(items, dataset, options.out, split, options.shards, over)
        print(f"{options.out}: split {split}, {size.num_examples} images, {size.num_shards} shards")
        labelled = sum(bool(item.label_path) for item in items)
        if labelled and not learns_something(options.out, split):
            print(f"warning: {NOTHING.format(labelled)}")
