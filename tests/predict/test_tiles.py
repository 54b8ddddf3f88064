"""A thing that a seam cuts is one segment, and an image in tiles is what it is in one piece."""

import dataclasses
import json
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from kmax_tf import config, predict, visualize
from kmax_tf.data.transforms import geometry, host
from kmax_tf.errors import InputError
from kmax_tf.evaluation import evaluate
from kmax_tf.experiment import Experiment
from kmax_tf.files import read_json
from kmax_tf.inference import export, predictor
from kmax_tf.predict import image_sources, tiles, web_demo
from kmax_tf.predict.output_files import OutputFiles, confident_part
from kmax_tf.predict.segmenter import Segment, predict_sources
from kmax_tf.predict.tiles import Segmented, Stitcher, Tiles

CAR, DOG, SKY, ROAD = range(4)  # two things, two stuff
TILE, OVERLAP = (40, 40), 16


def seen(things, stuff, classes, scores=None, missed=()):
    """What a model says of a tile: its things in a random order, and one segment a stuff class.

    Args:
        things: int32 [h, w], 0 for stuff, else the thing's number in `classes`, from 1.
        stuff: integers [h, w], class of the other pixels, -1 void.
        missed: numbers of the things that it does not see.
    """
    numbers = np.setdiff1d(things, [0, *missed])
    numbers = np.random.default_rng(len(numbers)).permutation(numbers).tolist()
    segment_map, segment_class, segment_score = np.zeros(things.shape, np.int32), [], []
    for kind, number in [(c, None) for c in (ROAD, SKY)] + [(classes[k], k) for k in numbers]:
        inside = things == number if number else (stuff == kind) & ~np.isin(things, numbers)
        segment_class.append(kind if inside.any() else -1)
        segment_score.append((scores or {}).get(number, 0.5))
        segment_map[inside] = len(segment_class)
    semantic = np.append(segment_class, SKY)[segment_map - 1]
    return Segmented(segment_map, np.array(segment_class), np.array(segment_score), semantic)


def window(corner, tile=TILE):
    return tuple(slice(c, c + side) for c, side in zip(corner, tile))


def stitch(size, look, original_size=None, tile=TILE, overlap=OVERLAP):
    """Stitches what `look` (corner -> Segmented) sees in each tile."""
    stitcher = Stitcher(size, tile, overlap, num_things=2)
    for corner in stitcher.corners:
        stitcher.add(look(corner))
    return stitcher.finish(original_size or size)


def of_truth(things, stuff, classes, **options):
    """A model that sees the truth in each tile."""

    def look(corner):
        part = window(corner, options.get("tile", TILE))
        return seen(things[part], stuff[part], classes)

    return stitch(things.shape, look, **options)


def assert_is(result, things, stuff, classes):
    """The result has the very segments of the truth: each thing, and one segment a stuff class."""
    truth = np.where(things > 0, things, -2 - stuff)
    truth[(things == 0) & (stuff < 0)] = 0
    pairs = np.unique(np.stack([truth.ravel(), result.segment_map.ravel()]), axis=1).T
    assert len(pairs) == len(np.unique(truth)) == len(np.unique(result.segment_map)), pairs
    for true, found in pairs.tolist():
        assert (true == 0) == (found == 0)
        if true:
            kind = classes[true] if true > 0 else -2 - true
            assert result.segment_class[found - 1] == kind
    numbers = np.unique(result.segment_map[result.segment_map > 0])
    assert numbers.tolist() == list(range(1, len(result.segment_class) + 1))


@pytest.mark.parametrize("length", [1, 39, 40, 41, 64, 65, 100, 1000])
@pytest.mark.parametrize("overlap", [1, 16, 39])
def test_places(length, overlap):
    found = tiles.starts(length, 40, overlap)
    assert found[0] == 0 and found[-1] == max(length - 40, 0)
    steps = np.diff(found)
    assert (steps > 0).all() and (steps <= 40 - overlap).all()
    assert not len(steps) or np.ptp(steps) <= 1
    # One tile less would not do.
    assert len(found) == 1 or (len(found) - 2) * (40 - overlap) < length - 40


def scene(height, width):
    stuff = np.full((height, width), SKY)
    stuff[height // 2 :] = ROAD
    return np.zeros((height, width), np.int32), stuff


def test_thing_across_two_tiles():
    things, stuff = scene(40, 64)
    things[10:20, 5:60] = 1
    assert_is(of_truth(things, stuff, [None, CAR]), things, stuff, [None, CAR])


def test_thing_across_four_tiles():
    things, stuff = scene(64, 64)
    things[8:60, 6:58] = 1
    things[30:34, 30:34] = 2  # one that all see, upon it
    classes = [None, CAR, CAR]
    assert_is(of_truth(things, stuff, classes), things, stuff, classes)


@pytest.mark.parametrize("turn", range(4))
def test_u_joins_two_of_another_tile(turn):
    things, stuff = scene(64, 64)
    things[4:10, 4:60] = things[20:36, 4:60] = things[4:36, 54:60] = 1  # arms of two widths
    things, stuff = np.rot90(things, turn).copy(), np.rot90(stuff, turn).copy()
    arms = ndimage.label(things)[0]
    assert arms.max() == 1

    def look(corner):  # a tile sees parts that do not touch as several things
        part = ndimage.label(things[window(corner)])[0]
        return seen(part, stuff[window(corner)], [None, CAR, CAR, CAR])

    assert_is(stitch((64, 64), look), things, stuff, [None, CAR])


def test_touching_neighbors_of_a_class_stay_two():
    things, stuff = scene(64, 64)
    things[6:12, 3:60] = 1
    things[12:18, 5:62] = 2
    things[18:60, 20:32] = 3
    things[20:62, 32:36] = 4
    things[30:40, 36:44] = 5
    classes = [None, CAR, CAR, DOG, DOG, DOG]
    assert_is(of_truth(things, stuff, classes), things, stuff, classes)


def two_tiles(left, right):
    """Stitches the things [40, 64] that the left tile sees with those that the right one sees."""
    stuff = scene(40, 64)[1]

    def look(corner):
        things = right if corner[1] else left
        return seen(things[window(corner)], stuff[window(corner)], [None, CAR, CAR, CAR])

    return stitch((40, 64), look), stuff


# The tiles are columns 0 to 39 and 24 to 63; the middle of what they share is column 32.
@pytest.mark.parametrize(
    "columns, sees, kept",
    [
        ((26, 36), "left", True),  # in the strip, nearer to the left tile's center
        ((26, 36), "right", False),
        ((28, 39), "left", False),
        ((28, 39), "right", True),
        ((10, 38), "left", True),  # the right tile has a cut part, and does not see it
        ((26, 50), "right", True),
        ((36, 50), "left", False),  # the left tile has a sliver, the right one sees no thing
        ((10, 28), "right", False),
    ],
)
def test_thing_that_one_tile_sees_is_whole_or_gone(columns, sees, kept):
    things, _ = scene(40, 64)
    things[12:28, slice(*columns)] = 1
    nothing = np.zeros_like(things)
    result, stuff = two_tiles(*((things, nothing) if sees == "left" else (nothing, things)))
    assert_is(result, things if kept else nothing, stuff, [None, CAR])


def test_whole_view_wins_over_the_part_that_a_border_cuts():
    things, _ = scene(40, 64)
    things[10:30, 12:37] = 1
    part = things.copy()
    part[12:, 28:] = 0  # less than half of what the left tile sees in the strip
    result, stuff = two_tiles(things, part)
    assert_is(result, things, stuff, [None, CAR])
    result, stuff = two_tiles(part[:, ::-1], things[:, ::-1])
    assert_is(result, things[:, ::-1], stuff, [None, CAR])


def test_two_views_of_one_thing_are_split_in_the_middle():
    left, right = scene(40, 64)[0], scene(40, 64)[0]
    left[10:30, 4:60] = 1
    right[12:32, 4:60] = 1
    expected = np.concatenate([left[:, :32], right[:, 32:]], axis=1)
    result, stuff = two_tiles(left, right)
    assert_is(result, expected, stuff, [None, CAR])


def test_other_class_does_not_join():
    things, stuff = scene(40, 64)
    things[10:30, 4:60] = 1

    def look(corner):
        part = window(corner)
        return seen(things[part], stuff[part], [None, DOG if corner[1] else CAR])

    expected = np.where(np.arange(64) < 32, things, 2 * things)
    assert_is(stitch((40, 64), look), expected, stuff, [None, CAR, DOG])


def test_scores_are_means_over_pixels():
    things, stuff = scene(40, 64)
    things[10:20, 2:62] = 1
    things[30:35, 41:44] = 2

    def look(corner):
        scores = {1: 0.9, 2: 0.25, None: 1.0} if corner[1] else {1: 0.3, None: 0.0}
        return seen(things[window(corner)], stuff[window(corner)], [None, CAR, DOG], scores)

    result = stitch((40, 64), look)
    for column, kind, score in ((5, CAR, 0.6), (42, DOG, 0.25)):
        [number] = np.unique(result.segment_map[things == (1 if kind == CAR else 2)])
        assert result.segment_class[number - 1] == kind, column
        assert result.segment_score[number - 1] == pytest.approx(score)
    for kind in (SKY, ROAD):
        inside = (stuff == kind) & (things == 0)
        [number] = np.unique(result.segment_map[inside])
        right = inside[:, 32:].sum() / inside.sum()
        assert result.segment_score[number - 1] == pytest.approx(right)


def test_semantic_map_and_confidence_come_from_the_nearer_tile():
    things, stuff = scene(64, 64)
    stuff[:] = SKY

    def look(corner):
        number = 2 * (corner[0] > 0) + (corner[1] > 0)
        answer = seen(things[window(corner)], stuff[window(corner)], [None])
        return answer._replace(
            semantic_map=np.full(TILE, number), confidence=np.full(TILE, number / 4, np.float32)
        )

    result = stitch((64, 64), look)
    expected = 2 * (np.arange(64)[:, None] >= 32) + (np.arange(64) >= 32)
    np.testing.assert_array_equal(result.semantic_map, expected)
    np.testing.assert_array_equal(result.confidence, expected / 4)


def test_segments_come_back_at_the_original_size():
    things, stuff = scene(64, 96)
    things[10:50, 20:70] = 1
    result = of_truth(things, stuff, [None, CAR], original_size=(32, 48))
    rows, columns = (np.rint(np.linspace(0, n - 1, m)).astype(int) for n, m in ((64, 32), (96, 48)))
    small, small_stuff = (values[rows][:, columns] for values in (things, stuff))
    assert_is(result, small, small_stuff, [None, CAR])


def test_one_tile_is_exactly_what_the_model_says():
    rng = np.random.default_rng(0)
    answer = Segmented(
        rng.integers(0, 9, TILE).astype(np.int32),
        np.array([1, -1, 2, 3, 0, 2, 1, 1]),
        rng.random(8, np.float32),
        rng.integers(0, 4, TILE),
        rng.random(TILE, np.float32),
        (np.zeros((3, 3), np.int32),),
    )
    result = stitch((30, 40), lambda corner: answer)
    for name, values in answer._asdict().items():
        expected = values[:30] if name.endswith("map") or name == "confidence" else values
        np.testing.assert_array_equal(getattr(result, name), expected, name)


def disks(rng, size, number, largest):
    """Disks on stuff of a wavy border and some void, the later ones over the earlier ones."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    things = np.zeros(size, np.int32)
    for k in range(1, number + 1):
        radius = rng.uniform(1, largest / 2)
        row, column = (rng.uniform(0, side) for side in size)
        things[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = k
    stuff = np.where(rows + 5 * np.sin(columns / 7) < size[0] / 2, SKY, ROAD)
    stuff[rng.random(size) < 0.01] = -1
    return things, stuff, [None, *rng.integers(0, 2, number).tolist()]


@pytest.mark.parametrize("larger", [1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_truth_of_each_tile_gives_the_truth_of_the_image(seed, larger):
    rng = np.random.default_rng(seed)
    size, tile = rng.integers(30, 150, 2), rng.integers(24, 60, 2)
    overlap = int(rng.integers(2, min(tile)))
    things, stuff, classes = disks(rng, size, 40, larger * overlap)
    if larger > 1:  # parts of a thing that no tile sees together would be two things
        for k in range(1, 41):
            things[ndimage.label(things == k, np.ones((3, 3)))[0] > 1] = 0
    result = of_truth(things, stuff, classes, tile=tuple(tile), overlap=overlap)
    assert_is(result, things, stuff, classes)


@pytest.mark.parametrize("seed", range(20))
def test_things_smaller_than_the_overlap_need_one_tile_that_sees_them(seed):
    """Each tile sees only the things with most of their pixels in it, and any it has whole."""
    rng = np.random.default_rng(seed)
    size, least = rng.integers(60, 150, 2), rng.uniform(0.3, 0.9)
    things, stuff, classes = disks(rng, size, 20, OVERLAP)
    area = np.bincount(things.ravel(), minlength=21)

    def look(corner):
        part = window(corner)
        missed = np.bincount(things[part].ravel(), minlength=21) < least * area
        return seen(things[part], stuff[part], classes, missed=np.flatnonzero(missed))

    assert_is(stitch(tuple(size), look), things, stuff, classes)


@pytest.fixture
def with_tiles(records, tiny_text, tmp_path):
    """A function: gin bindings -> the toy experiment with tiles."""
    text = tiny_text.format(records=records)
    imports, include, rest = text.partition('include "gin/experiments/demo.gin"')
    imports += "from kmax_tf.model import postprocess\nfrom kmax_tf.predict import tiles\n"
    path = tmp_path / "tiles.gin"
    path.write_text(
        f"{imports}{include}{rest}\nexperiment.Experiment.tiles = @tiles.Tiles()\n"
        "tiles.Tiles.scale = 2.0\n"
    )
    return lambda *bindings: config.load(Experiment, str(path), bindings)


def test_gin_binds_tiles(with_tiles):
    assert with_tiles("tiles.Tiles.overlap = 48").tiles == Tiles(2.0, 48)
    assert with_tiles("experiment.Experiment.tiles = None").tiles is None


@pytest.mark.parametrize(
    "binding, message",
    [
        ("tiles.Tiles.scale = 0.0", "Tiles.scale 0.0 is not above 0; bind it to 1.0 or 2.0"),
        ("tiles.Tiles.overlap = 0", "Tiles.overlap 0 is not a positive integer; bind it to 32"),
        ("tiles.Tiles.overlap = 97", "Tiles.overlap 97 is not smaller than the tile, 97 x 97 pix"),
        (
            "postprocess.PostProcess.at_image_size = True",
            "Experiment.tiles merges at the size of a tile; bind it to None, or",
        ),
    ],
)
def test_wrong_values_are_refused(with_tiles, binding, message):
    with pytest.raises(InputError, match=message):
        with_tiles(binding)


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.4])
def test_cut_is_that_of_the_scaled_image(scale):
    image = np.random.default_rng(0).integers(0, 256, (61, 90, 3)).astype(np.uint8)
    size = Tiles(scale, OVERLAP).scaled_size([61, 90])
    scaled = host.resize_image(image, size)
    corners = Stitcher(size.numpy().tolist(), TILE, OVERLAP, 2).corners
    assert len(corners) == {1.0: 8, 2.0: 35, 0.4: 1}[scale]
    for corner in corners:
        part = scaled[window(corner)]
        sample = geometry.Sample(part, tf.zeros(part.shape[:2], tf.int32))
        expected = host.pad(sample, tf.constant([0, 0]), TILE).image
        np.testing.assert_array_equal(tiles.cut(image, size, corner, TILE), expected)


def test_tiles_of_several_images_share_batches():
    """The model calls each pixel above 99 a car; images of one and of several tiles are mixed."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 100, (*size, 3)).astype(np.uint8) for size in ((30, 20), (90, 70))]
    images = [*images, *images[::-1]]
    for image in images:
        image[5:19, 4:16] = 100
    batches = []

    def model(canvases):
        batches.append(canvases.shape)
        cars = (canvases[..., 0] > 99) & (canvases[..., 0] != geometry.GRAY)
        return lambda i: seen(cars[i].astype(np.int32), np.full(TILE, SKY), [None, CAR])

    with ThreadPoolExecutor(2) as pool:
        found = tiles.segment(iter(images), model, TILE, Tiles(1.0, OVERLAP), 4, 2, pool)
        results = [finish() for finish in found]
    number = sum(len(Stitcher(i.shape[:2], TILE, OVERLAP, 2).corners) for i in images)
    assert batches == [(4, *TILE, 3)] * -(-number // 4)
    for image, result in zip(images, results, strict=True):
        cars = (image[..., 0] > 99).astype(np.int32)
        assert (result.segment_map > 0).all()
        np.testing.assert_array_equal(result.segment_class[result.segment_map - 1] == CAR, cars)


@pytest.fixture(scope="module")
def tiled(exported, tmp_path_factory):
    """The toy model on images of twice their size, cut into 9 tiles: experiment and export."""
    experiment = dataclasses.replace(exported.experiment, tiles=Tiles(2.0, 40))
    folder = str(tmp_path_factory.mktemp("tiled") / "export")
    export.export(experiment, exported.model, folder)
    return experiment, folder


@pytest.fixture(scope="module")
def segmenter(tiled):
    return predict.load(tiled[1])


@pytest.fixture(scope="module")
def evaluated(predict_batch, tiled):
    """What the evaluator sees of the validation images, a list of `ImagePrediction`."""
    return list(predictor.predict_split(tiled[0], predict_batch, lambda _, segmented: segmented))


@pytest.fixture(scope="module")
def photos(exported):
    """The validation images by name."""
    folder = str(pathlib.Path(exported.experiment.data_dir).parent / "val")
    return {source.name: source.read() for source in image_sources.find([folder])[1]}


def test_segmenter_gives_what_the_evaluator_gives(segmenter, evaluated, photos):
    assert len(evaluated) == len(photos) == 3
    for expected in evaluated:
        result = segmenter(photos[expected.name])
        np.testing.assert_array_equal(result.panoptic_map, expected.segment_map)
        assert len(result.segments) == len(expected.segment_class) > 1
        for segment, index in zip(result.segments, expected.segment_class, strict=True):
            rows, columns = np.nonzero(expected.segment_map == segment.id)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            category = segmenter.categories[index]
            score = pytest.approx(float(expected.segment_score[segment.id - 1]), abs=1e-5)
            assert segment == Segment(
                segment.id, category.id, category.isthing, score, len(rows), box
            )
        assert result.confidence is None


def test_tiles_are_those_of_the_model(predict_batch, exported, evaluated, photos):
    """The stitched result is made of what the model says of each part of the enlarged image."""
    expected, size = evaluated[0], exported.experiment.evaluation_size
    scaled = host.resize_image(photos[expected.name], tf.constant([194, 194]))
    canvases = tf.stack([scaled[r : r + 97, c : c + 97] for r in (0, 48, 97) for c in (0, 48, 97)])
    panoptic, _ = predict_batch(canvases)
    middle = panoptic.semantic_map[4]  # the middle tile owns pixels 72 to 120 of both sides
    nearest = np.floor(np.arange(97) * np.float32(193 / 96) + 0.5).astype(int)
    inside = nearest[(nearest >= 80) & (nearest < 112)]
    own = np.isin(nearest, inside)
    classes = expected.segment_class[expected.segment_map - 1]
    stuff = classes >= exported.experiment.dataset.num_things
    assert size == (97, 97) and expected.segment_map.shape == (97, 97)
    ours = expected.semantic_map[own][:, own]
    theirs = middle.numpy()[inside - 48][:, inside - 48]
    assert (ours == theirs)[stuff[own][:, own]].mean() > 0.9


def of_one_tile(predict_batch, image, size):
    """What the model says of an image at `size` within one tile: map, `Panoptic`, clusters."""
    sample = geometry.Sample(image, tf.zeros(image.shape[:2], tf.int32))
    canvas = host.pad(host.resize(sample, size), tf.constant([0, 0]), (97, 97)).image
    panoptic, clusters = predict_batch(canvas[None])
    segment_map = host.to_original_size(panoptic.segment_map[0], size, image.shape[:2])
    return segment_map, panoptic, clusters, canvas


def test_evaluator_gives_what_the_model_says_of_an_image_of_one_tile(
    predict_batch, exported, photos
):
    # Batches of one, as below: on some CPUs a batch rounds otherwise than its images.
    options = dict(tiles=Tiles(0.5, 40), evaluation_batch_size=1)
    experiment = dataclasses.replace(exported.experiment, **options)
    for image in predictor.predict_split(experiment, predict_batch, lambda _, segmented: segmented):
        size = tf.constant([48, 48])  # 48.5, rounded to even
        expected, panoptic, clusters, canvas = of_one_tile(predict_batch, photos[image.name], size)
        np.testing.assert_array_equal(image.segment_map, expected)
        np.testing.assert_array_equal(image.segment_class, panoptic.segment_class[0])
        np.testing.assert_array_equal(image.segment_score, panoptic.segment_score[0])
        np.testing.assert_array_equal(image.assignments[0], clusters[0].assignment[0])
        np.testing.assert_array_equal(image.canvas(), np.rint(canvas))
        np.testing.assert_array_equal(image.fitted_size, size)


def test_segmenter_gives_what_the_model_says_of_an_image_of_one_tile(
    predict_batch, segmenter, photos
):
    [photo, *_] = photos.values()
    for shape in ((30, 48), (48, 20)):
        image = photo[: shape[0], : shape[1]]
        expected, *_ = of_one_tile(predict_batch, image, tf.constant([2 * side for side in shape]))
        result = segmenter(image, details=True)
        np.testing.assert_array_equal(result.panoptic_map, expected)
        assert len(result.assignments) == 1 and expected.numpy().any()


@pytest.mark.slow
def test_two_replicas_give_what_one_gives(exported, tiled, evaluated, two_replicas):
    config.load(Experiment, str(pathlib.Path(exported.folder).with_name("tiny.gin")))
    with two_replicas.scope():
        model = exported.experiment.build_evaluation_model()
        for variable, value in zip(model.variables, exported.model.variables, strict=True):
            variable.assign(value)
        run = predictor.build_predictor(model, tiled[0])
        found = list(predictor.predict_split(tiled[0], run, lambda _, segmented: segmented))
    for ours, expected in zip(found, evaluated, strict=True):
        np.testing.assert_array_equal(ours.segment_map, expected.segment_map)


def test_evaluation_in_tiles(predict_batch, tiled, tmp_path):
    metrics, _, examples = evaluate.evaluate(tiled[0], predict_batch, step=1)
    assert metrics["num_images"] == 3 and metrics["mIoU"] > 0
    for entry in examples.write(str(tmp_path)):
        names = {path.name for path in (tmp_path / entry["folder"]).iterdir()}
        assert names == {"image.webp", "label.webp", "prediction.webp"}
        picture = (tmp_path / entry["folder"] / "image.webp").read_bytes()
        assert visualize.decode(picture).shape == (97, 97, 3)


def test_files_and_page_of_images_in_tiles(segmenter, exported, photos, tmp_path):
    folder = str(pathlib.Path(exported.experiment.data_dir).parent / "val")
    _, sources = image_sources.find([folder])
    scores = [s.score for photo in photos.values() for s in segmenter(photo).segments]
    least = float(np.median(scores))
    written = OutputFiles(
        str(tmp_path),
        segmenter.categories,
        sources,
        cluster_assignments=True,
        confidence=least,
    )
    skipped = predict_sources(segmenter, sources, written.add, batch_size=2, details=True)
    written.finish()
    assert skipped == []
    for kind in ("predictions", "pseudo_labels"):
        content = json.loads((tmp_path / f"{kind}.json").read_text())
        number = sum(len(a["segments_info"]) for a in content["annotations"])
        assert number == len(scores) if kind == "predictions" else 0 < number < len(scores)
    result = segmenter(photos[sources[0].name], details=True)
    assert result.confidence.shape == result.panoptic_map.shape
    assert result.assignments.shape == (0, *result.panoptic_map.shape)
    assert result.confidence[result.panoptic_map > 0].min() > 0.4  # the pixel threshold
    confident, segments = confident_part(result, least)
    assert {s.id: s.area for s in segments} == {
        i: (confident == i).sum() for i in np.unique(confident) if i
    }
    content = pathlib.Path(folder, sources[0].name).read_bytes()
    views = web_demo.views_of(segmenter, sources[0].name, content)["views"]
    assert [view["title"] for view in views] == ["image", "segments"]


def test_card_and_json_of_an_export_name_the_tiles(tiled, exported):
    card = pathlib.Path(tiled[1], "model_card.md").read_text()
    assert "| input | 97 x 97 pixels; larger images are cut into tiles |" in card
    assert "| segments | at most 16 a tile |" in card
    assert "scale an image by 2." in card and "share at least 40 pixels" in card
    plain = pathlib.Path(exported.folder, "model_card.md").read_text()
    assert "| segments | at most 16 an image |" in plain and "Large images" not in plain
    content = read_json(str(pathlib.Path(tiled[1], "categories.json")))
    assert content["tiles"] == {"size": [97, 97], "scale": 2.0, "overlap": 40}
    assert set(read_json(str(pathlib.Path(exported.folder, "categories.json")))) == {"categories"}
