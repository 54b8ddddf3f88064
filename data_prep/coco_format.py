"""Converts any dataset in the COCO panoptic format to TFRecord.

python -m data_prep.coco_format --images val2017 --panoptic_json panoptic_val2017.json \
    --panoptic_dir panoptic_val2017 --out records --split val
"""

import argparse
import os
import re
import sys
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data_prep import pool
from kmax_tf import files
from kmax_tf.data import coco_panoptic, datasets, example


class Item(NamedTuple):
    """One image to convert: where its files are and what the JSON says of it."""

    image_path: str
    png_path: str
    json_path: str
    annotation: coco_panoptic.Annotation


def convert(
    images_dir: str,
    panoptic_json: str,
    panoptic_dir: str,
    out_dir: str,
    split: str,
    num_shards: int | None = None,
    workers: int | None = None,
    name: str | None = None,
) -> datasets.Split:
    """Writes one split as TFRecord shards and enters it in dataset.json, which is written last.

    Args:
        images_dir: folder of the JPEG or PNG images.
        panoptic_json: the annotation file.
        panoptic_dir: folder of the id PNGs.
        out_dir: folder for the records; other splits in it stay as they are.
        split: name of the split.
        num_shards: number of files; by default one for 128 images but, for parallel reading,
            at least 8.
        workers: number of processes, one a core by default.
        name: name of a new dataset, by default that of the JSON.

    Returns:
        The size of the split.

    Raises:
        InputError: something in the source is wrong. Then out_dir is left as it was.
    """
    if not re.fullmatch(r"[\w-]+", split):
        raise files.InputError(f'--split "{split}": use letters, digits, "_" and "-" only')
    panoptic = coco_panoptic.read_panoptic(panoptic_json)
    items = [
        Item(
            os.path.join(images_dir, annotation.image_name),
            os.path.join(panoptic_dir, annotation.png_name),
            panoptic_json,
            annotation,
        )
        for annotation in panoptic.annotations
    ]
    if not items:
        raise files.InputError(f'{panoptic_json}: "annotations" is empty; nothing to convert')
    count = min(len(items), max(8, len(items) // 128)) if num_shards is None else num_shards
    if not 1 <= count <= len(items):
        raise files.InputError(f"--shards {count}: choose 1 to {len(items)}, the number of images")
    stem = os.path.splitext(os.path.basename(panoptic_json))[0]
    dataset = datasets.Dataset(name or stem, panoptic.categories)
    size = datasets.Split(len(items), count)
    content = datasets.with_split(out_dir, dataset, split, size)

    files.make_folder(out_dir)
    paths = [os.path.join(out_dir, example.shard_name(split, i, count)) for i in range(count)]
    # Strided, so that a source sorted by scene or class is mixed in every shard.
    jobs = [(items[index::count], f"{path}.tmp") for index, path in enumerate(paths)]
    try:
        pool.run(convert_shard, jobs, workers)
    except BaseException:
        for _, path in jobs:
            if tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)
        raise
    for old in tf.io.gfile.listdir(out_dir):
        if re.fullmatch(rf"{split}-\d{{5}}-of-\d{{5}}\.tfrecord", old):
            tf.io.gfile.remove(os.path.join(out_dir, old))
    for path in paths:
        tf.io.gfile.rename(f"{path}.tmp", path)
    files.write_atomic(os.path.join(out_dir, datasets.FILE_NAME), content)
    return size


def convert_shard(items: list[Item], path: str) -> None:
    """Writes one file of records."""
    with tf.io.TFRecordWriter(path) as writer:
        for item in items:
            writer.write(convert_item(item))


def convert_item(item: Item) -> bytes:
    """Returns the record of one image; InputError if its files and the JSON disagree."""
    _, image_name, _, segments = item.annotation
    image = _read_listed(item.image_path, item.json_path)
    ids = coco_panoptic.decode_ids(_read_listed(item.png_path, item.json_path), item.png_path)
    try:
        return example.serialize(
            image=image,
            filename=image_name,
            image_id=item.annotation.image_id,
            segment_map=_number_segments(ids, segments),
            segment_id=[segment.id for segment in segments],
            category_id=[segment.category_id for segment in segments],
            is_crowd=[segment.is_crowd for segment in segments],
        )
    except files.InputError as error:
        raise files.InputError(f"{item.json_path}: {item.png_path}: {error}") from error


def _number_segments(ids: np.ndarray, segments: tuple[coco_panoptic.Segment, ...]) -> np.ndarray:
    """Replaces ids, int32 [h, w], by positions in `segments` from 1; InputError if they differ."""
    # A label map has few runs of equal ids, so only the runs are sorted.
    flat = ids.ravel()
    start = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    length = np.diff(start, append=flat.size)
    present, run = np.unique(flat[start], return_inverse=True)
    area = dict(zip(present.tolist(), np.bincount(run, length).tolist(), strict=True))
    position = {0: 0} | {segment.id: k for k, segment in enumerate(segments, 1)}
    for identity in area.keys() - position.keys():
        raise files.InputError(f"segment id {identity} is not in segments_info; add it")
    for segment in segments:
        if segment.id not in area:
            raise files.InputError(
                f"segment id {segment.id} has no pixels; remove it from the JSON"
            )
        if segment.area not in (None, area[segment.id]):
            raise files.InputError(
                f'segment id {segment.id}: "area" is {segment.area} but the PNG has'
                f" {area[segment.id]:.0f} pixels; correct one of them"
            )
    numbers = np.array([position[identity] for identity in area], np.int32)[run]
    return np.repeat(numbers, length).reshape(ids.shape)


def _read_listed(path: str, json_path: str) -> bytes:
    """Reads a file that the JSON names, and says so when it cannot be read."""
    try:
        return files.read_bytes(path)
    except files.InputError as error:
        raise files.InputError(f'{error} ("file_name" is from {json_path})') from error


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--panoptic_json", required=True, help="annotation file")
    parser.add_argument("--panoptic_dir", required=True, help="folder of the id PNGs")
    parser.add_argument("--out", required=True, help="folder for the records")
    parser.add_argument("--split", required=True, help="name of the split, as train or val")
    parser.add_argument("--shards", type=int, help="number of files (one for 128 images)")
    parser.add_argument("--workers", type=int, help="number of processes (one a core)")
    parser.add_argument("--name", help="name of a new dataset (that of the JSON)")
    args = parser.parse_args(argv)
    try:
        size = convert(
            args.images,
            args.panoptic_json,
            args.panoptic_dir,
            args.out,
            args.split,
            args.shards,
            args.workers,
            args.name,
        )
    except files.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: split {args.split}, {size.num_examples} images, {size.num_shards} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
