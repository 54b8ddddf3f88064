"""Writes predictions into a folder: COCO panoptic format, pseudo labels and pictures.

predictions.json, predictions/       COCO panoptic format
pseudo_labels.json, pseudo_labels/   the same for confident segments; the rest is void
overlays/, contact_sheet.png         the segments over the image
cluster_assignments/                 image, clusters of each decoder, prediction, label
unfinished.json                      names of the PNG files, until all files are written
"""

import collections
import json
import os
import threading
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmax_tf import files, visualize
from kmax_tf.data import coco_panoptic, label_png
from kmax_tf.data.coco_writer import PanopticWriter
from kmax_tf.data.datasets import Category
from kmax_tf.errors import InputError
from kmax_tf.predict.image_sources import Source
from kmax_tf.predict.result_names import FILES, KINDS, LIST_NAME, SHEET_NAME, UNFINISHED
from kmax_tf.predict.segmentation import Segmentation, measure, named

SHEET, COLUMNS, THUMBNAIL = 24, 4, 384  # contact sheet: images, columns, pixels a side
LONGEST_SIDE = 1024  # pixels of a picture of cluster assignments


class Labels:
    """The labels of some images, in COCO panoptic format.

    Raises InputError if the JSON is wrong, or has a category that is not one of `categories`.
    """

    def __init__(self, json_path: str, folder: str, categories: Sequence[Category]):
        self.path, self._folder = json_path, folder
        labels = coco_panoptic.read_panoptic(json_path)
        known = {category.id for category in categories}
        if others := [c.name for c in labels.categories if c.id not in known]:
            raise InputError(
                f"{json_path}: {len(others)} categories are not of the export, the first is"
                f" {others[0]!r}; give the labels of its dataset"
            )
        self._annotations = {annotation.image_name: annotation for annotation in labels.annotations}
        bases = collections.Counter(map(os.path.basename, self._annotations))
        self._alone = {  # by the name without its folder, where only one has it
            os.path.basename(name): annotation
            for name, annotation in self._annotations.items()
            if bases[os.path.basename(name)] == 1
        }

    def of(self, name: str) -> tuple[np.ndarray, Sequence] | None:
        """Returns the map and the segments of an image, None if it has no label."""
        annotation = self._annotations.get(name) or self._alone.get(os.path.basename(name))
        if annotation is None or not _is_part(annotation.image_name, name):
            return None
        path = os.path.join(self._folder, annotation.png_name)
        return label_png.decode_ids(files.read_bytes(path), path), annotation.segments


def _is_part(first: str, second: str) -> bool:
    """Returns whether one path may be the end of the other: a/1.png and 1.png, not b/1.png."""
    return f"/{first}".endswith(f"/{second}") or f"/{second}".endswith(f"/{first}")


class OutputFiles:
    """Writes the files of each image, and at the end those of all images.

    The folder holds one run. Files of an earlier run, even an interrupted one, are removed first
    and counted in a line. Raises InputError if another file is where a result may go.

    Args:
        folder: output folder.
        categories: the classes.
        sources: the images that `add` may get.
        cluster_assignments: also draw the cluster assignments.
        confidence: least confidence of a pseudo label's segments and pixels; None: write none.
        labels: `Labels` to show next to the cluster assignments, or None.
    """

    def __init__(
        self,
        folder: str,
        categories: Sequence[Category],
        sources: Sequence[Source],
        *,
        cluster_assignments: bool = False,
        confidence: float | None = None,
        labels: Labels | None = None,
    ):
        # A name that is not UTF-8 gets no file.
        stems = [source.stem.encode(errors="replace").decode() for source in sources]
        _make_room(folder, [f"{stem}.png" for stem in stems])
        self._folder = folder
        self._categories = categories
        self._predictions = self._writer("predictions", categories)
        self._pseudo_labels = None
        if confidence is not None:
            self._pseudo_labels = self._writer("pseudo_labels", categories)
        self._confidence = confidence
        self._cluster_assignments = cluster_assignments
        self._labels, self._unlabelled = labels, collections.Counter()  # what is wrong -> images
        self._order = {source.name: number for number, source in enumerate(sources)}
        self._thumbnails, self._lock = {}, threading.Lock()  # place in the order -> (name, picture)

    @property
    def needs_details(self) -> bool:
        """Whether `add` needs the details of a prediction."""
        return self._cluster_assignments or self._confidence is not None

    def _writer(self, name, categories):
        folder = os.path.join(self._folder, name)
        return PanopticWriter(f"{folder}.json", folder, categories)

    def add(self, source: Source, result: Segmentation) -> None:
        """Writes the files of one image; several threads may call it."""
        overlay = np.asarray(result.overlay())
        self._write_picture("overlays", source, overlay)
        self._keep_thumbnail(source.name, overlay)
        if self._cluster_assignments:
            sheet = self._assignments(source, result, overlay)
            self._write_picture("cluster_assignments", source, sheet)
        if self._pseudo_labels:
            _add(self._pseudo_labels, source, *confident_part(result, self._confidence))
        _add(self._predictions, source, result.panoptic_map, result.segments)

    def finish(self) -> None:
        """Writes the JSON files and the contact sheet, and counts the images without a label."""
        for what, count in self._unlabelled.items():
            line = f"{count} of {len(self._order)} images have {what} in {self._labels.path}"
            print(line, flush=True)
        self._predictions.finish()
        if self._pseudo_labels:
            self._pseudo_labels.finish()
        if self._thumbnails:
            sheet = _sheet(sorted(self._thumbnails.values()), COLUMNS)
            files.write_atomic(os.path.join(self._folder, SHEET_NAME), visualize.png(sheet))
        tf.io.gfile.remove(os.path.join(self._folder, UNFINISHED))

    def _keep_thumbnail(self, name, overlay):
        """Keeps the first images of the sources, whichever thread is done first."""
        place = self._order[name]
        with self._lock:
            if len(self._thumbnails) == SHEET:
                if place > max(self._thumbnails):
                    return
                del self._thumbnails[max(self._thumbnails)]
            self._thumbnails[place] = name, visualize.thumbnail(overlay, THUMBNAIL)

    def _write_picture(self, kind, source, picture):
        path = os.path.join(self._folder, kind, f"{source.stem}.png")
        files.write_atomic(path, visualize.png(picture))

    def _assignments(self, source, result, overlay):
        """Draws image, each decoder's clusters, prediction and label (paper, figures 4 to 9)."""
        image = visualize.thumbnail(result.image, LONGEST_SIDE)
        pictures = [("image", image)]
        for number, assignment in enumerate(result.assignments, start=1):
            picture = visualize.assignment_picture(assignment, image)
            pictures.append((f"clusters of decoder {number}", picture))
        pictures.append(("prediction", visualize.thumbnail(overlay, LONGEST_SIDE)))
        if self._labels:
            pictures += self._label(source.name, result.image)
        return _sheet(pictures, 3)

    def _label(self, name, image):
        """Returns a list of the label's title and picture; counts an image that has none."""
        panoptic_map, segments = self._labels.of(name) or (None, [])
        if panoptic_map is None or panoptic_map.shape != image.shape[:2]:
            what = "no label" if panoptic_map is None else "a label of another size, not drawn,"
            with self._lock:
                self._unlabelled[what] += 1
            return []
        shown = named(segments, self._categories)
        picture = visualize.overlay(image, panoptic_map, shown)
        return [("label", visualize.thumbnail(picture, LONGEST_SIDE))]


def _make_room(folder, names):
    """Removes the files of an earlier run, and says so; notes the PNG files of this one.

    Raises InputError if another file is where a run may write: the next run would remove it, too.
    """
    earlier_names, paths = _earlier(folder)
    places = _results(folder, names, _present(folder, names))
    if others := sorted(set(places).difference(paths)):
        raise InputError(
            f"{others[0]}: would be overwritten, though it may be yours; choose another --out, or"
            " delete it"
        )
    note = os.path.join(folder, UNFINISHED)
    if paths:
        files.write_atomic(note, json.dumps(earlier_names))  # an interruption may leave some
        for path in paths:
            tf.io.gfile.remove(path)
        print(f"removed {len(paths)} files of an earlier run from {folder}", flush=True)
    files.write_atomic(note, json.dumps(names))


def earlier(folder: str) -> list[str]:
    """Returns the paths of the files that an earlier run wrote into a folder."""
    return _earlier(folder)[1]


def _earlier(folder):
    """Returns the names of the PNG files of an earlier run, and the paths of all its files."""
    finished, unfinished = _finished(folder), _unfinished(folder)
    present = _present(folder, {*finished, *unfinished})
    # Every run draws overlays; a list without them is not from here.
    finished = [n for n in finished if os.path.join(folder, "overlays", n) in present]
    names = sorted({*finished, *unfinished})
    return names, _results(folder, names, present) if names else []


def _results(folder, names, present):
    """Returns the paths of PNG files of these names among `present`, and of the files beside."""
    paths = [os.path.join(folder, kind, name) for kind in KINDS for name in names]
    single = [os.path.join(folder, name) for name in FILES]
    return [p for p in paths if p in present] + [p for p in single if tf.io.gfile.exists(p)]


def _present(folder, names):
    """Returns the paths in the folders of results that hold these names; lists each folder once."""
    below = {os.path.dirname(name) for name in names}
    places = [os.path.join(folder, kind, inner) for kind in KINDS for inner in below]
    return {os.path.join(p, name) for p in places for name in files.names(p, required=False)}


def _finished(folder):
    """Returns the names of the PNG files that the list of a run has."""
    listed = os.path.join(folder, LIST_NAME)
    try:
        found = coco_panoptic.read_panoptic(listed, report=lambda problem: None).annotations
    except InputError:
        return []
    return [a.png_name for a in found if _is_below(a.png_name)]


def _unfinished(folder):
    """Returns the names of the PNG files that an interrupted run wrote or had yet to write."""
    path = os.path.join(folder, UNFINISHED)
    if not tf.io.gfile.exists(path):
        return []
    names = files.read_json(path)
    is_ours = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_ours or not all(map(_is_below, names)):
        raise InputError(f"{path}: lists no PNG files of a run; delete it, or choose another --out")
    return names


def _is_below(name):
    """Returns whether a name is one below its folder."""
    return not {"", ".."} & set(name.split("/"))


def confident_part(result: Segmentation, confidence: float) -> tuple[np.ndarray, list]:
    """Returns the confident part of a `Segmentation`: its map, int32 [height, width], and segments.

    Segments with a lower score than `confidence` become void (0), and so do pixels whose likeliest
    mask is less probable. Areas and boxes are those of the remaining pixels.
    """
    confident = [s for s in result.segments if s.score >= confidence]
    kept = np.isin(result.panoptic_map, [s.id for s in confident])
    panoptic_map = np.where(kept & (result.confidence >= confidence), result.panoptic_map, 0)
    measured = measure(panoptic_map)
    left = [(s, *measured[s.id]) for s in confident if s.id in measured]
    return panoptic_map, [s._replace(area=area, box=box) for s, area, box in left]


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
