"""Checks a dataset before training, and lists all its problems in plain words.

Errors stop the conversion or give wrong labels. With warnings a training runs, but may learn less
than it could.
"""

import collections
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data_prep import coco_format, convert, pool
from kmax_tf import errors, files, visualize
from kmax_tf.data import coco_panoptic, datasets, label_png, orientation
from kmax_tf.data.records import example, reader, serialize, shards

ERROR, WARNING = "error", "warning"
PICTURES, COLUMNS = 12, 4  # of the contact sheet
SHOWN = 3  # problems of each kind that are printed; the report has all
FEW = 10  # images: a class in fewer is hardly learned
SMALL = 16  # pixels: one of the masks' at the output stride 4
PIXELS, SEGMENTS, SMALL_SEGMENTS = 1, 2, 3  # columns of `Facts.counts`
CLUSTERS = 128  # of most models, the segments that an image may have
JOB = 64  # images of one job of a worker process
PLAN = "kmax plan chooses clusters, size and tiles for such segments"


class Problem(NamedTuple):
    """One problem of the dataset."""

    level: str  # ERROR or WARNING
    kind: str  # heading of all problems of this kind
    text: str  # place and problem


class Picture(NamedTuple):
    """One image with its labels."""

    name: str
    image: Any  # uint8 [height, width, 3], or the bytes of the file
    segment_map: np.ndarray  # int32 [height, width], 0 void, k the k-th segment
    category_id: list[int]  # of each segment
    is_crowd: list[bool]  # of each segment


class Facts(NamedTuple):
    """Statistics of one image; the counts have no rows if it cannot be read."""

    handle: tuple  # loads the image again
    name: str
    problems: list[Problem]
    counts: np.ndarray  # int64 [categories, 4]: id, pixels, segments, those below SMALL pixels
    learnable: int  # segments that are not crowd
    void: float | None  # share of the pixels, 0 to 1
    digest: bytes  # of the image


class Dataset(NamedTuple):
    """A dataset to check; worker processes call look(*job) for each job."""

    name: str
    categories: tuple[datasets.Category, ...]
    problems: list[Problem]  # known before any image is read
    jobs: list[tuple]
    look: Callable[..., list[Facts]]
    load: Callable[[tuple], Picture | None]  # handle -> image, None if it cannot be read


def raw(images: str, panoptic_json: str, panoptic_dir: str) -> Dataset:
    """Opens a dataset in COCO panoptic format: folder of images, JSON and folder of PNGs.

    Raises:
        InputError: the JSON cannot be read at all.
    """
    problems = []
    panoptic = coco_panoptic.read_panoptic(
        panoptic_json,
        report=lambda error: problems.append(Problem(ERROR, "entries of the JSON", str(error))),
    )
    for name in panoptic.unlabelled:
        problems.append(Problem(WARNING, "images without annotation (left out)", name))
    items = coco_format.from_annotations(panoptic.annotations, panoptic_json, images, panoptic_dir)
    jobs = [(items[start : start + JOB], start) for start in range(0, len(items), JOB)]
    load = functools.partial(_load_item, items)
    return Dataset(panoptic_json, panoptic.categories, problems, jobs, look_at_items, load)


def converted(folder: str, split: str, source: str | None = None) -> Dataset:
    """Opens a split of records.

    Args:
        folder: folder of the records.
        split: name of the split.
        source: names the dataset (datasets.load), if the folder has no dataset.json.

    Raises:
        InputError: no records exist, or they have other classes.
    """
    dataset = datasets.load(source or folder)
    records = reader.find(folder, split, dataset)
    jobs = [(folder, split, dataset, path) for path in records.paths]
    load = functools.partial(_load_record, records.parse, dataset)
    return Dataset(f"{folder} {split}", dataset.categories, [], jobs, look_at_shard, load)


def look_at_items(items: list[convert.Item], start: int = 0) -> list[Facts]:
    """Collects the facts of raw images; the first one has the number `start`."""
    # The handle is a number, not the item, because all facts stay in memory.
    return [_facts((number,), *_read_item(item)) for number, item in enumerate(items, start)]


def look_at_shard(folder: str, split: str, dataset: datasets.Dataset, path: str) -> list[Facts]:
    """Collects the facts of the images in one file of records."""
    facts, problems = [], []
    records = reader.find(folder, split, dataset)
    try:
        for number, record in enumerate(shards.read(path)):
            read = _read_record(records.parse, record, f"{path}: record {number}", dataset)
            facts.append(_facts((path, number), *read))
        problems += _wrong_count(records, path, len(facts))
    except files.NotAtHand as error:
        problems.append(Problem(ERROR, "files of records that cannot be read now", str(error)))
    except errors.InputError as error:
        problems.append(Problem(ERROR, "corrupt files of records", str(error)))
    return [*facts, *(_facts((path, -1), None, [problem]) for problem in problems)]


def _wrong_count(records: reader.Records, path: str, count: int) -> Iterator[Problem]:
    """Yields the problem of a file whose number of records is not that of dataset.json."""
    if records.num_examples is None:  # which another schema does not store
        return
    size = datasets.Split(records.num_examples, len(records.paths))
    expected = size.shard_lengths()[records.paths.index(path)]
    if count != expected:
        text = f"{path}: holds {count} records, not {expected}; convert again"
        yield Problem(ERROR, f"files that do not hold what {datasets.FILE_NAME} says", text)


def _read_item(item: convert.Item) -> tuple[Picture | None, list[Problem]]:
    """Reads a raw image with its labels; an unreadable file is a problem."""
    problems = []

    def attempt(kind, function):
        try:
            return function()
        except errors.InputError as error:
            problems.append(Problem(ERROR, kind, str(error)))

    _, name, png_name, segments = item.annotation
    image = attempt("images that cannot be read", lambda: files.read_bytes(item.image_path))
    stored = image is not None and attempt(
        "images that cannot be read", lambda: serialize.check_image(image, name)
    )
    ids = attempt(
        "label files that cannot be read",
        lambda: label_png.decode_ids(files.read_bytes(item.label_path), item.label_path),
    )
    if ids is None:
        return None, problems
    segment_map, pixels = coco_panoptic.number_segments(
        ids,
        segments,
        lambda error: problems.append(
            Problem(ERROR, "labels that do not fit the JSON", f"{png_name}: {error}")
        ),
    )
    for segment, count in zip(segments, pixels.tolist(), strict=True):
        if not count and segment.area is None:
            text = f"{png_name}: segment id {segment.id} has no pixels"
            problems.append(Problem(WARNING, "segments without pixels (left out)", text))
    if not stored:
        return None, problems
    turn = stored.orientation
    if turn != orientation.UPRIGHT:
        text = f"{name}: EXIF orientation {turn}; its labels must fit the upright image"
        problems.append(Problem(WARNING, "images that EXIF turns", text))
    try:
        serialize.check_label_size(image, stored.size, ids.shape[::-1], name)
    except errors.InputError as error:
        problems.append(Problem(ERROR, "sizes of image and label map differ", str(error)))
        return None, problems
    columns = [s.category_id for s in segments], [s.is_crowd for s in segments]
    return Picture(name, image, segment_map, *columns), problems


def _read_record(
    parse: Callable, record: bytes, place: str, dataset: datasets.Dataset
) -> tuple[Picture | None, list[Problem]]:
    """Reads a record; a corrupt one, or an unknown category in it, is a problem."""
    try:
        item = reader.parse_one(parse, record, place)
    except errors.InputError as error:
        return None, [Problem(ERROR, "corrupt records", str(error))]
    categories = item.category_id.numpy().tolist()
    unknown = set(categories) - dataset.class_of_category.keys()
    problems = [
        Problem(ERROR, "unknown categories", f"{place}: category {k} is not one of the dataset")
        for k in sorted(unknown)
    ]
    name = item.filename.numpy().decode("utf-8", "replace")
    crowd = item.is_crowd.numpy().tolist()
    return Picture(name, item.image.numpy(), item.segment_map.numpy(), categories, crowd), problems


def _facts(handle: tuple, picture: Picture | None, problems: list[Problem]) -> Facts:
    """Counts the pixels and segments of an image, and adds the problems of its segments."""
    if picture is None:
        return Facts(handle, "", problems, np.zeros((0, 4), np.int64), 0, None, b"")
    category_id = np.array(picture.category_id, np.int64)
    sizes = np.bincount(picture.segment_map.ravel(), minlength=len(category_id) + 1)
    void, area = int(sizes[0]), sizes[1:]
    if void == picture.segment_map.size:
        text = f"{picture.name}: all pixels are void"
        problems = [*problems, Problem(WARNING, "images without a segment", text)]
    categories, index = np.unique(category_id, return_inverse=True)
    values = area, area > 0, (area > 0) & (area < SMALL)
    sums = [np.bincount(index, value, len(categories)) for value in values]
    return Facts(
        handle,
        picture.name,
        problems,
        np.stack([categories, *sums], axis=1).astype(np.int64),
        learnable=int(np.sum((area > 0) & ~np.array(picture.is_crowd, bool))),
        void=void / picture.segment_map.size,
        digest=hashlib.sha1(picture.image).digest(),
    )


def _load_item(items: list[convert.Item], handle: tuple) -> Picture | None:
    picture, _ = _read_item(items[handle[0]])
    if picture is None:
        return None
    stored = example.decode_image(picture.image)
    upright = orientation.turn_upright(stored, orientation.read(picture.image))
    return picture._replace(image=upright.numpy())


def _load_record(parse: Callable, dataset: datasets.Dataset, handle: tuple) -> Picture | None:
    path, wanted = handle
    for number, record in enumerate(shards.read(path)):
        if number == wanted:
            return _read_record(parse, record, path, dataset)[0]
    return None


def validate(dataset: Dataset, out_dir: str, workers: int | None = None) -> tuple[str, int]:
    """Checks all images, and writes report.txt and contact_sheet.png into `out_dir`.

    Args:
        dataset: from `raw` or `converted`.
        out_dir: folder to write into.
        workers: number of processes, None for one per core.

    Returns:
        The report with only a few problems of each kind, and the number of errors.
    """
    looked = pool.run(dataset.look, dataset.jobs, workers, "validating")
    facts = [fact for share in looked for fact in share]
    problems = [*dataset.problems, *(problem for fact in facts for problem in fact.problems)]
    problems += _split_stuff(dataset, facts)
    problems += [*_twins(facts), *_rare_classes(dataset, facts), *_void(facts)]
    problems += _nothing_to_learn(facts)
    summary = _summary(dataset, facts)
    table = _class_table(dataset, facts)
    files.write_atomic(
        os.path.join(out_dir, "report.txt"),
        "\n".join([*summary, *_listed(problems, len(problems)), "", *table, ""]),
    )
    rows = _sheet(dataset, facts)
    if rows:
        sheet = tf.io.encode_png(visualize.contact_sheet(rows)).numpy()
        files.write_atomic(os.path.join(out_dir, "contact_sheet.png"), sheet)
    errors = sum(problem.level == ERROR for problem in problems)
    return "\n".join([*summary, *_listed(problems, SHOWN)]), errors


def _total(facts: list[Facts], column: int) -> collections.Counter:
    """Sums a column of `Facts.counts` for each category."""
    total = collections.Counter()
    for fact in facts:
        for row in fact.counts.tolist():
            total[row[0]] += row[column]
    return total


def _split_stuff(dataset: Dataset, facts: list[Facts]) -> Iterator[Problem]:
    stuff = {category.id: category.name for category in dataset.categories if not category.isthing}
    for fact in facts:
        for category, _, count, _ in fact.counts.tolist():
            if category in stuff and count > 1:
                text = f"{fact.name}: {count} segments of {stuff[category]}"
                yield Problem(WARNING, "stuff in several segments instead of one", text)


def _twins(facts: list[Facts]) -> Iterator[Problem]:
    first = {}
    for fact in facts:
        twin = first.setdefault(fact.digest, fact)
        if fact.digest and twin is not fact:
            text = f"{fact.name} is the same picture as {twin.name}"
            yield Problem(WARNING, "duplicate images", text)


def _rare_classes(dataset: Dataset, facts: list[Facts]) -> Iterator[Problem]:
    images = _images_of_classes(facts)
    whole = sum(fact.void is not None for fact in facts)
    for category in dataset.categories:
        count = images[category.id]
        if count == 0:
            yield Problem(WARNING, "classes without any segment", category.name)
        elif count < FEW <= whole:
            text = f"{category.name}: in {count} of {whole} images"
            yield Problem(WARNING, f"classes in fewer than {FEW} images", text)


def _void(facts: list[Facts]) -> Iterator[Problem]:
    voids = [fact.void for fact in facts if fact.void is not None]
    if voids and max(voids) == 0:
        text = "if the things of a class merge into one segment, train with"
        remedy = """--gin="criterion.Criterion.unmatched_class_weight = 'nonvoid_share'\""""
        yield Problem(WARNING, "no image has void pixels", f"{text} {remedy}")


def _nothing_to_learn(facts: list[Facts]) -> Iterator[Problem]:
    whole = sum(fact.void is not None for fact in facts)
    if whole and not any(fact.learnable for fact in facts):
        yield Problem(WARNING, "nothing to learn", convert.NOTHING.format(whole))


def _images_of_classes(facts: list[Facts]) -> collections.Counter:
    """Counts the images of each category."""
    return collections.Counter(
        category for fact in facts for category, _, count, _ in fact.counts.tolist() if count
    )


def _summary(dataset: Dataset, facts: list[Facts]) -> list[str]:
    read = [fact for fact in facts if fact.void is not None]
    present = _images_of_classes(facts).keys() & {category.id for category in dataset.categories}
    void = np.mean([fact.void for fact in read]) if read else 0
    return [
        f"{dataset.name}: {len(read)} images, {len(present)} of {len(dataset.categories)} classes",
        f"void: {100 * void:.1f} % of the pixels",
        *_sizes(dataset, read),
    ]


def _sizes(dataset: Dataset, facts: list[Facts]) -> list[str]:
    """Returns lines about the number and the size of segments, which decide the model's."""
    counts = [int(fact.counts[:, SEGMENTS].sum()) for fact in facts] or [0]
    crowded = sum(count > CLUSTERS for count in counts)
    things = [category.id for category in dataset.categories if category.isthing]
    small, all_ = (
        sum(_total(facts, column)[k] for k in things) for column in (SMALL_SEGMENTS, SEGMENTS)
    )
    lines = [
        f"segments in an image: median {np.median(counts):g}, at most {max(counts)};"
        f" over {CLUSTERS} in {crowded} images",
        f"things: {all_:,}; {small:,} have less than {SMALL} pixels",
    ]
    return lines + [PLAN] * bool(crowded or small)


def _listed(problems: list[Problem], limit: int) -> list[str]:
    """Returns the lines of all problems, errors first, at most `limit` of each kind."""
    groups = collections.defaultdict(list)
    for problem in sorted(problems, key=lambda problem: problem.level):
        groups[problem.level, problem.kind].append(problem.text)
    lines = [] if groups else ["no problems found"]
    for (level, kind), texts in groups.items():
        lines += [f"{level}: {kind} ({len(texts)})", *(f"    {text}" for text in texts[:limit])]
        lines += [f"    and {len(texts) - limit} more"] if len(texts) > limit else []
    return lines


def _class_table(dataset: Dataset, facts: list[Facts]) -> list[str]:
    images = _images_of_classes(facts)
    segments, pixels = _total(facts, SEGMENTS), _total(facts, PIXELS)
    whole = max(1, sum(pixels.values()))
    lines = [f"{'class':30}{'':7}{'images':>8}{'segments':>10}{'pixels':>11}"]
    for category in sorted(dataset.categories, key=lambda category: -pixels[category.id]):
        k, kind = category.id, "thing" if category.isthing else "stuff"
        share = f"{100 * pixels[k] / whole:.3f} %"
        lines.append(f"{category.name:30.30}{kind:7}{images[k]:8}{segments[k]:10}{share:>11}")
    return lines


def _sheet(dataset: Dataset, facts: list[Facts]) -> list[list[tuple[str, np.ndarray]]]:
    """Draws rows of titled overlays: images with problems first, then a sample of the others."""
    readable = [fact for fact in facts if fact.void is not None]
    chosen = [fact for fact in readable if fact.problems][:PICTURES]
    others = [fact for fact in readable if not fact.problems]
    wanted = min(PICTURES - len(chosen), len(others))
    chosen += [others[index * len(others) // wanted] for index in range(wanted)]
    named = {category.id: category for category in dataset.categories}
    pictures = []
    for fact in chosen:
        picture = dataset.load(fact.handle)
        step = -(-max(picture.image.shape) // 640)  # large images are drawn smaller
        segments = [
            (k, named[c].name, named[c].color)
            for k, c in enumerate(picture.category_id, start=1)
            if c in named
        ]
        overlay = visualize.overlay(
            picture.image[::step, ::step], picture.segment_map[::step, ::step], segments
        )
        title = f"{picture.name}: {fact.problems[0].kind}" if fact.problems else picture.name
        pictures.append((title[:50], overlay))
    return [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
