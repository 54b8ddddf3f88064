"""The COCO panoptic format: a PNG of segment ids for each image, one JSON for all of them."""

import contextlib
import pickle
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kmax_tf import errors, files
from kmax_tf.data import datasets, json_fields, label_png


class LabelSegment(NamedTuple):
    """One entry of "segments_info"."""

    id: int  # 1 to 2**24 - 1
    category_id: int
    is_crowd: bool
    area: int | None  # pixels; None if the file does not give it


class Segments(Sequence):
    """The segments of an image, pickled: as objects, those of COCO take several times as much."""

    __slots__ = ("_pickled",)

    def __init__(self, segments: Iterable[LabelSegment]):
        self._pickled = pickle.dumps([tuple(segment) for segment in segments])

    def __len__(self) -> int:
        return len(pickle.loads(self._pickled))

    def __getitem__(self, place: Any) -> Any:
        return tuple(self)[place]

    def __iter__(self) -> Iterator[LabelSegment]:
        return map(LabelSegment._make, pickle.loads(self._pickled))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __repr__(self) -> str:
        return repr(tuple(self))


class Annotation(NamedTuple):
    """One annotated image. File names are as in the JSON, and so is the order of the segments."""

    image_id: str
    image_name: str
    png_name: str
    segments: Sequence[LabelSegment] | None  # None: the PNG is a semantic map, without a list


class PanopticDataset(NamedTuple):
    """A whole panoptic JSON: categories in class order, annotations in file order."""

    categories: tuple[datasets.Category, ...]
    annotations: tuple[Annotation, ...]
    unlabelled: tuple[str, ...]  # names of the images without an annotation


SEGMENTS = "segments_info"
GRAY = 0x010101  # divides an id whose R, G and B are equal

Report = Callable[[errors.InputError], None]  # handles a problem: raises it or notes it


def stop(problem: errors.InputError) -> None:
    """Raises the problem, so that reading ends at the first one."""
    raise problem


def number_segments(
    ids: np.ndarray, segments: Sequence[LabelSegment], report: Report = stop
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces the ids of a map by positions in the list of its segments.

    Args:
        ids: int32 [height, width], 0 for void.
        segments: the s segments of the image.
        report: gets an InputError for each id without a segment, whose pixels become void. It also
            gets one for each segment whose given area is not the number of its pixels.

    Returns:
        int32 [height, width], 0 void, k the k-th segment, from 1; and int64 [s], pixels of each.
    """
    run, length = label_png.find_runs(ids)
    known = np.array([0, *(segment.id for segment in segments)])
    order = np.argsort(known)
    place = np.searchsorted(known, run, sorter=order)
    number = order.astype(np.int32)[np.minimum(place, len(segments))]
    unknown = known[number] != run
    for identity in np.unique(run[unknown]):
        remedy = "add it there, or save the PNG as RGB if it has a palette"
        remedy = "save the PNG as RGB, not gray" if identity % GRAY == 0 else remedy
        report(errors.InputError(f'segment id {identity} is not in "segments_info"; {remedy}'))
    number[unknown] = 0
    pixels = np.bincount(number, length, len(known)).astype(np.int64)[1:]
    for segment, count in zip(segments, pixels.tolist(), strict=True):
        if segment.area not in (None, count):
            found = f"{count} pixels" if count else "no pixels"
            report(
                errors.InputError(
                    f'segment id {segment.id}: "area" is {segment.area} but the PNG has {found};'
                    " correct one of them"
                )
            )
    return np.repeat(number, length).reshape(ids.shape), pixels


def read_panoptic(
    path: str,
    dataset: datasets.Dataset | None = None,
    image_name: Callable[[str], str] | None = None,
    report: Report = stop,
) -> PanopticDataset:
    """Reads and checks a panoptic JSON.

    Images without an annotation are left out. "area" and "iscrowd" may be null or missing.

    Args:
        path: the JSON file.
        dataset: gives the categories; the file's own need not be there, and their names are free.
        image_name: maps an image id to its file name, for a JSON whose "images" are not usable.
        report: gets an InputError for each wrong entry, which is left out if `report` returns.
            Wrong are missing fields and other types, repeated ids, unknown categories or images,
            and segments with the id of void, 0.

    Returns:
        The categories and annotations.

    Raises:
        InputError: the file is not a panoptic JSON, or its categories are wrong.
    """
    content = files.read_json(path, _pack_segments)
    categories = _read_categories(content, path, dataset)
    names = {} if image_name else _read_images(content, path, report)
    known = {category.id for category in categories}
    entries = files.field(content, "annotations", list, path)
    if entries and isinstance(entries[0], dict) and "segmentation" in entries[0]:
        raise errors.InputError(
            f"{path}: this is COCO's instance format; convert it with `kmax prepare coco_instances`"
        )
    annotations = {}
    for index, entry in enumerate(entries):
        where = f"{path}: annotations[{index}]"
        with _reported(report):
            identity = json_fields.identity(entry, "image_id", where)
            if not image_name and identity not in names:
                raise errors.InputError(
                    f'{where}: "image_id" {identity} is not in "images"; add the image there or'
                    " delete this annotation"
                )
            if identity in annotations:
                raise errors.InputError(
                    f'{where}: "image_id" {identity} is annotated twice; keep one annotation'
                )
            annotations[identity] = Annotation(
                identity,
                image_name(identity) if image_name else names[identity],
                _file_name(entry, where),
                Segments(read_segments(_unpack_segments(entry), known, where, report)),
            )
    unlabelled = tuple(name for identity, name in names.items() if identity not in annotations)
    return PanopticDataset(categories, tuple(annotations.values()), unlabelled)


def _pack_segments(entry: dict) -> dict:
    """Pickles the segments of an annotation: as objects they take several times as much memory."""
    entry.pop("bbox", None)  # the largest part of a segment, and not read
    if SEGMENTS in entry and "image_id" in entry:
        entry[SEGMENTS] = pickle.dumps(entry[SEGMENTS])
    return entry


def _unpack_segments(entry: dict) -> dict:
    """Returns an annotation as it was before `_pack_segments`."""
    return {**entry, SEGMENTS: pickle.loads(entry[SEGMENTS])} if SEGMENTS in entry else entry


@contextlib.contextmanager
def _reported(report: Report) -> Iterator[None]:
    """Hands an InputError of the block to `report`."""
    try:
        yield
    except errors.InputError as problem:
        report(problem)


def _read_categories(content, path, dataset):
    if dataset is None:
        return datasets.parse_categories(content, path)
    if "categories" in content:
        theirs = {c.id: c.isthing for c in datasets.parse_categories(content, path)}
        if theirs != {c.id: c.isthing for c in dataset.categories}:
            raise errors.InputError(
                f'{path}: "categories" have other ids or other things than {dataset.name};'
                " use `kmax prepare coco_format` for your own dataset"
            )
    return dataset.categories


def _read_images(content: Any, path: str, report: Report) -> dict[str, str]:
    """Returns the file name of each image id."""
    names = {}
    for index, image in enumerate(files.field(content, "images", list, path)):
        where = f"{path}: images[{index}]"
        with _reported(report):
            identity = json_fields.identity(image, "id", where)
            if identity in names:
                raise errors.InputError(f'{where}: "id" {identity} is used twice; make ids unique')
            names[identity] = _file_name(image, where)
    return names


def _file_name(entry: Any, where: str) -> str:
    """Returns "file_name" of an entry, which may include a folder."""
    name = json_fields.text(entry, "file_name", where)
    if not name:
        raise errors.InputError(f'{where}: "file_name" is empty; give the name of the file')
    return name


def read_segments(
    entry: Any, known: Container[int], where: str, report: Report = stop
) -> tuple[LabelSegment, ...]:
    """Returns the segments of one annotation, whose categories must be `known` ids."""
    segments = {}
    for index, segment in enumerate(files.field(entry, SEGMENTS, list, where)):
        place = f"{where}: segments_info[{index}]"
        try:
            identity = json_fields.integer(segment, "id", place)
            if identity in segments or identity == 0:
                wrong = "is used twice" if identity else "means void"
                raise errors.InputError(f'{place}: "id" {identity} {wrong}; choose another id')
            if not 0 < identity < 1 << 24:
                raise errors.InputError(f'{place}: "id" {identity} is not 1 to 2^24 - 1; change it')
            category = json_fields.integer(segment, "category_id", place)
            if category not in known:
                raise errors.InputError(
                    f'{place}: "category_id" {category} is not in "categories"; add it there'
                )
            crowd, area = segment.get("iscrowd"), segment.get("area")
            segments[identity] = LabelSegment(
                identity,
                category,
                crowd is not None and json_fields.flag(segment, "iscrowd", place),
                None if area is None else json_fields.integer(segment, "area", place),
            )
        except errors.InputError as problem:
            report(problem)
    return tuple(segments.values())
