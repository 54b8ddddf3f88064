"""Writes the labels of raw images in COCO panoptic format, in worker processes."""

import collections
import os
from typing import NamedTuple

import tensorflow as tf

from data_prep import drawing, pool, raw_dataset, raw_images
from kmax_tf import files
from kmax_tf.data import coco_writer
from kmax_tf.data.records import serialize


class Share(NamedTuple):
    """One split: where its images are, and where its files will be."""

    raw: str  # folder of the images
    images: str  # the same, or a folder for copies if records do not hold the format of one
    json: str
    labels: str  # folder of the id PNGs


class Written(NamedTuple):
    """What was written of a split."""

    notes: collections.Counter[str]  # what was left out or changed, and how often
    segments: collections.Counter[int]  # category id -> number


def place(out: str, split: str, images: str, pictures: list[raw_dataset.Picture]) -> Share:
    """Chooses the places in the folder `out` of the files of a split."""
    start = os.path.join(out, split)
    is_whole = all(picture.facts.is_recorded for picture in pictures)
    return Share(
        images, images if is_whole else f"{start}_images", f"{start}.json", f"{start}_labels"
    )


def write(
    raw: raw_dataset.RawDataset,
    share: Share,
    pictures: list[raw_dataset.Picture],
    workers: int | None,
) -> Written:
    """Writes the labels of a split, and the copies of its images if there are any.

    Raises:
        InputError: a label file is wrong, or has another size than its image.
    """
    if tf.io.gfile.exists(share.json):  # an interrupted run leaves no JSON of other labels
        tf.io.gfile.remove(share.json)
    head = raw._replace(listings=[])
    jobs = [(head, share, part) for part in raw_dataset.jobs(pictures)]
    writer = coco_writer.PanopticWriter(share.json, share.labels, raw.categories)
    notes, segments = collections.Counter(), collections.Counter()
    for made in pool.run(write_labels, jobs, workers, "writing labels"):
        for image, annotation, image_notes in made:
            writer.enter(image, annotation)
            notes.update(image_notes)
            segments.update(segment["category_id"] for segment in annotation["segments_info"])
    writer.finish()
    return Written(notes, segments)


def write_labels(
    raw: raw_dataset.RawDataset, share: Share, pictures: list[raw_dataset.Picture]
) -> list[tuple[dict, dict, collections.Counter]]:
    """Writes the labels of some images; returns the two JSON entries and the notes of each."""
    return [_write_one(raw, share, picture) for picture in pictures]


def _write_one(
    raw: raw_dataset.RawDataset, share: Share, picture: raw_dataset.Picture
) -> tuple[dict, dict, collections.Counter]:
    source, facts = picture
    path = os.path.join(share.raw, source.file_name)
    content = files.read_bytes(path)
    drawn = raw.draw(source, facts)
    serialize.check_label_size(content, facts.size, drawn.segment_map.shape[::-1], path)
    drawn = drawing.fill(drawn, raw.background)
    stem = files.flat_name(source.image_id)
    name = source.file_name
    if share.images != share.raw:
        name = stem + (os.path.splitext(name)[1] if facts.is_recorded else ".png")
        copy = content if facts.is_recorded else raw_images.to_png(content, path)
        files.write_atomic(os.path.join(share.images, name), copy)
    segments = [
        {"id": k, "category_id": segment.category_id, "iscrowd": int(segment.is_crowd)}
        for k, segment in enumerate(drawn.segments, start=1)
    ]
    entries = coco_writer.write_annotation(
        share.labels, source.image_id, name, drawn.segment_map, segments, f"{stem}.png"
    )
    return *entries, drawn.notes
