"""The schema of a record: one image with its panoptic segments.

| key | value |
|---|---|
| image/encoded | bytes of the JPEG or PNG file, untouched |
| image/format | "jpeg" or "png" |
| image/filename, image/id | text |
| image/height, image/width | int64 |
| panoptic/encoded | PNG of one channel: 0 void, k the k-th segment; 16 bit if over 255 |
| segment/id, segment/category_id, segment/is_crowd, segment/area | int64, one for each segment |
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import files

TEXT = tf.io.FixedLenFeature([], tf.string)
SEGMENTS = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)  # one for each


class Example(NamedTuple):
    """One image as tensors: h, w pixels, s segments."""

    image: tf.Tensor  # uint8 [h, w, 3]
    segment_map: tf.Tensor  # int32 [h, w], 0 void, k the k-th segment, from 1
    segment_id: tf.Tensor  # int64 [s], as in the source
    category_id: tf.Tensor  # int64 [s], as in the source
    is_crowd: tf.Tensor  # bool [s]
    filename: tf.Tensor  # string
    image_id: tf.Tensor  # string


def serialize(
    *,
    image: bytes,
    filename: str,
    image_id: str,
    segment_map: np.ndarray | None,
    segment_id: list[int],
    category_id: list[int],
    is_crowd: list[bool],
) -> bytes:
    """Makes a record.

    Args:
        image: content of a JPEG or PNG file. EXIF orientation is ignored, here and by parse.
        filename: name of that file.
        image_id: id of the image.
        segment_map: any integer type [h, w], 0 void, k the k-th segment, 1 to s. None for an image
            without labels, which is an image that is all void.
        segment_id, category_id, is_crowd: one value for each of the s segments.

    Returns:
        A serialized tf.train.Example.

    Raises:
        InputError: the image is broken, no JPEG or PNG, or not of the size of segment_map.
    """
    image_format, size = check_image(image, filename)
    if segment_map is None:
        segment_map = np.zeros(size[::-1], np.uint8)
    height, width = segment_map.shape
    if size != (width, height):
        raise files.InputError(
            f"{filename}: the image is {size[0]} x {size[1]} but its label map {width} x {height};"
            " give a label map of the stored (unrotated) image size"
        )
    segment_map = segment_map.astype(np.uint8 if len(segment_id) <= 255 else np.uint16)
    number, length = runs(segment_map)
    area = np.bincount(number, length, len(segment_id) + 1)[1:]
    feature = {
        "image/encoded": _bytes(image),
        "image/format": _bytes(image_format.encode()),
        "image/filename": _bytes(filename.encode()),
        "image/id": _bytes(image_id.encode()),
        "image/height": _int64([height]),
        "image/width": _int64([width]),
        "panoptic/encoded": _bytes(encode_labels(segment_map)),
        "segment/id": _int64(segment_id),
        "segment/category_id": _int64(category_id),
        "segment/is_crowd": _int64(is_crowd),
        "segment/area": _int64(area),
    }
    record = tf.train.Example(features=tf.train.Features(feature=feature))
    return record.SerializeToString(deterministic=True)


def runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits a label map [h, w], row by row, into runs of equal values, of which it has few.

    Returns:
        The value of each run, of the map's type; and its length in pixels, int64.
    """
    flat = labels.ravel()
    start = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    return flat[start], np.diff(start, append=flat.size)


def encode_labels(labels: np.ndarray) -> bytes:
    """Encodes uint8 or uint16 [h, w] as a PNG of one channel.

    Every row as its difference from the one above, mostly 0 in labels. Pillow tries all filters on
    every row, which takes twice as long and makes more bytes.
    """
    height, width = labels.shape
    rows = labels.astype(labels.dtype.newbyteorder(">")).view(np.uint8)
    above = np.diff(rows, axis=0, prepend=np.uint8(0))
    filtered = np.pad(above, [(0, 0), (1, 0)], constant_values=2)  # the number of this filter
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8 * labels.itemsize, 0, 0, 0, 0),
        b"IDAT": compressor.compress(filtered) + compressor.flush(),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def parse(serialized: tf.Tensor) -> Example:
    """Reads a record back: scalar string -> Example, whose image is uint8 [h, w, 3].

    With TensorFlow operations only. A damaged one is an InvalidArgumentError when it is read.
    """
    record = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": TEXT,
            "image/filename": TEXT,
            "image/id": TEXT,
            "panoptic/encoded": TEXT,
            "segment/id": SEGMENTS,
            "segment/category_id": SEGMENTS,
            "segment/is_crowd": SEGMENTS,
        },
    )
    labels = tf.io.decode_png(record["panoptic/encoded"], channels=1, dtype=tf.uint16)
    # An 8-bit PNG read as 16 bit has its values in both bytes.
    shift = tf.cast(tf.where(tf.size(record["segment/id"]) > 255, 0, 8), tf.uint16)
    return checked(
        Example(
            image=decode_image(record["image/encoded"]),
            segment_map=tf.cast(tf.bitwise.right_shift(labels[..., 0], shift), tf.int32),
            segment_id=record["segment/id"],
            category_id=record["segment/category_id"],
            is_crowd=record["segment/is_crowd"] != 0,
            filename=record["image/filename"],
            image_id=record["image/id"],
        )
    )


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG: scalar string -> uint8 [h, w, 3]."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def checked(example: Example) -> Example:
    """Returns the example, whose use is an InvalidArgumentError unless its parts fit together."""
    count = tf.size(example.segment_id)
    checks = [
        tf.debugging.assert_equal(
            tf.shape(example.image)[:2], tf.shape(example.segment_map), "sizes of image and labels"
        ),
        tf.debugging.assert_equal(
            [tf.size(example.category_id), tf.size(example.is_crowd)],
            [count, count],
            "lengths of the lists of segments",
        ),
        tf.debugging.assert_less_equal(
            tf.reduce_max(example.segment_map), count, "pixels of a segment that is not listed"
        ),
    ]
    with tf.control_dependencies(checks):
        return Example(*map(tf.identity, example))


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name of shard `index`, from 0, of `count`."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def shard_paths(folder: str, split: str) -> list[str]:
    """Returns the paths of all shards of a split, in order.

    They are named as by `shard_name` or as TFDS does (coco-train.tfrecord-00000-of-00512).

    Raises:
        InputError: there is none, one is missing, or two conversions are mixed.
    """
    number = r"(\d{5})-of-(\d{5})"
    name = re.compile(
        rf"{re.escape(split)}-{number}\.tfrecord|\w+-{re.escape(split)}\.tfrecord-{number}"
    )
    present = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    matches = sorted(filter(None, map(name.fullmatch, present)), key=lambda match: match[0])
    if not matches:
        raise files.InputError(
            f'{folder}: no records of split "{split}"; check the path and the split, or convert'
        )
    last = matches[-1][0]
    count = int(re.search(r"-of-(\d{5})", last)[1])
    expected = [re.sub(r"\d{5}-of", f"{index:05d}-of", last) for index in range(count)]
    wrong = sorted(set(expected) ^ {match[0] for match in matches})
    if wrong:
        problem = "is missing" if wrong[0] in expected else f"does not belong to {count} shards"
        raise files.InputError(f"{folder}: {wrong[0]} {problem}; convert again")
    return [os.path.join(folder, name) for name in expected]


def read_records(path: str) -> Iterator[bytes]:
    """Yields the serialized records of one file; InputError if it is missing or damaged."""
    try:
        yield from tf.data.TFRecordDataset(path).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise files.InputError(
            f"{path}: missing or damaged records ({error.message}); convert again"
        ) from error


def check_image(image: bytes, filename: str) -> tuple[str, tuple[int, int]]:
    """Reads an image file to its end, with what will decode the record.

    Returns:
        "jpeg" or "png", and (width, height).

    Raises:
        InputError: it is broken, or of another format.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind, size = opened.format, opened.size
        if kind in ("JPEG", "MPO"):  # MPO is a JPEG with more pictures after it
            # At an eighth of its size a JPEG still shows whether its data is whole.
            tf.io.decode_jpeg(image, channels=3, ratio=8)
        elif kind == "PNG":
            tf.io.decode_png(image, channels=3)
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise files.InputError(f"{filename}: broken or truncated image; get it again") from error
    if kind not in ("JPEG", "MPO", "PNG"):
        raise files.InputError(f"{filename}: is {kind}; convert it to JPEG or PNG")
    return "png" if kind == "PNG" else "jpeg", size


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int64(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=map(int, values)))
