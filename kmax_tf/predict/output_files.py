"""What a prediction leaves in a folder: COCO panoptic format, pseudo labels and pictures.

predictions.json, predictions/       COCO panoptic format
pseudo_labels.json, pseudo_labels/   the same of what is sure, the rest void
overlays/, contact_sheet.png         the segments over the image
cluster_assignments/                 image, clusters of each decoder, prediction, label
"""

import os
from collections.abc import Sequence

import numpy as np

from kmax_tf import visualize
from kmax_tf.data import coco_panoptic
from kmax_tf.data.coco_writer import PanopticWriter
from kmax_tf.data.datasets import Category
from kmax_tf.files import read_bytes, write_atomic
from kmax_tf.predict.image_sources import Source
from kmax_tf.predict.pseudo_labels import confident
from kmax_tf.predict.segmenter import Segmentation

SHEET, COLUMNS, THUMBNAIL = 24, 4, 384  # images and columns of the contact sheet; pixels of a side


class Labels:
    """The labels of some images, in COCO panoptic format.

    Raises InputError if the JSON is wrong.
    """

    def __init__(self, json_path: str, folder: str):
        self._folder = folder
        annotations = coco_panoptic.read_panoptic(json_path).annotations
        self._annotations = {annotation.image_name: annotation for annotation in annotations}

    def of(self, name: str) -> tuple[np.ndarray, tuple] | None:
        """The map and the segments of an image, None if it has no label."""
        annotation = self._annotations.get(name) or self._annotations.get(os.path.basename(name))
        if annotation is None:
            return None
        path = os.path.join(self._folder, annotation.png_name)
        return coco_panoptic.decode_ids(read_bytes(path), path), annotation.segments


class OutputFiles:
    """Writes the files of each image that it is given, and at the end those of all of them.

    Args:
        folder: to write into.
        categories: sequence of `Category`.
        cluster_assignments: draw them.
        confidence: from which a segment, and a pixel of it, is a pseudo label; None: write none.
        labels: `Labels` to show beside the cluster assignments, or None.
    """

    def __init__(
        self,
        folder: str,
        categories: Sequence[Category],
        *,
        cluster_assignments: bool = False,
        confidence: float | None = None,
        labels: Labels | None = None,
    ):
        self._folder = folder
        self._by_id = {category.id: category for category in categories}
        self._predictions = self._writer("predictions", categories)
        self._pseudo_labels = None
        if confidence is not None:
            self._pseudo_labels = self._writer("pseudo_labels", categories)
        self._confidence = confidence
        self._cluster_assignments = cluster_assignments
        self._labels = labels
        self._thumbnails = {}  # name -> picture

    @property
    def needs_details(self) -> bool:
        """Whether `add` wants the details of a prediction."""
        return self._cluster_assignments or self._confidence is not None

    def _writer(self, name, categories):
        folder = os.path.join(self._folder, name)
        return PanopticWriter(f"{folder}.json", folder, categories)

    def add(self, source: Source, image: np.ndarray, result: Segmentation) -> None:
        """Writes the files of one image; several threads may call it.

        Args:
            source: its `images.Source`.
            image: uint8 [height, width, 3].
            result: its `predict.Segmentation`.
        """
        _add(self._predictions, source, result.panoptic_map, result.segments)
        if self._pseudo_labels:
            _add(self._pseudo_labels, source, *confident(result, self._confidence))
        overlay = self._overlay(image, result.panoptic_map, result.segments)
        self._write_picture("overlays", source, overlay)
        if len(self._thumbnails) < SHEET:
            self._thumbnails[source.name] = visualize.thumbnail(overlay, THUMBNAIL)
        if self._cluster_assignments:
            sheet = self._assignments(source, image, result, overlay)
            self._write_picture("cluster_assignments", source, sheet)

    def finish(self) -> None:
        """Writes the JSON files and the contact sheet."""
        self._predictions.finish()
        if self._pseudo_labels:
            self._pseudo_labels.finish()
        if self._thumbnails:
            sheet = _sheet(sorted(self._thumbnails.items()), COLUMNS)
            write_atomic(os.path.join(self._folder, "contact_sheet.png"), visualize.png(sheet))

    def _write_picture(self, kind, source, picture):
        path = os.path.join(self._folder, kind, f"{source.stem}.png")
        write_atomic(path, visualize.png(picture))

    def _overlay(self, image, panoptic_map, segments):
        named = [(s.id, self._by_id[s.category_id]) for s in segments]
        return visualize.overlay(image, panoptic_map, [(i, c.name, c.color) for i, c in named])

    def _assignments(self, source, image, result, overlay):
        """The paper's figures 4 to 9: image, each decoder's clusters, prediction, label."""
        pictures = [("image", image)]
        for number, assignment in enumerate(result.assignments, start=1):
            picture = visualize.assignment_picture(assignment, image)
            pictures.append((f"clusters of decoder {number}", picture))
        pictures.append(("prediction", overlay))
        label = self._labels and self._labels.of(source.name)
        if label:
            pictures.append(("label", self._overlay(image, *label)))
        return _sheet(pictures, 3)


def _add(writer, source, panoptic_map, segments):
    listed = [
        {
            "id": s.id,
            "category_id": s.category_id,
            "score": round(s.score, 4),
            "isthing": int(s.isthing),
            "bbox": s.box,
        }
        for s in segments
    ]
    writer.add(source.image_id, source.name, panoptic_map, listed, f"{source.stem}.png")


def _sheet(pictures, columns):
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    return visualize.contact_sheet(rows)
