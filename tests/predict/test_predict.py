"""What scripts/predict.py leaves is what the evaluator sees; nothing that it is given ends it."""

import collections
import contextlib
import io
import json
import pathlib
import random
import shutil
import types

import numpy as np
import psutil
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import coco_format, convert, pool
from kmax_tf import commands, predict, visualize
from kmax_tf.data import datasets, label_png
from kmax_tf.data.datasets import same_classes
from kmax_tf.data.records import example, shards
from kmax_tf.errors import InputError
from kmax_tf.evaluation.coco_score import panoptic_quality
from kmax_tf.files import write_atomic
from kmax_tf.inference import predictor
from kmax_tf.predict import image_sources, output_files
from kmax_tf.predict import segmenter as segmenter_module
from kmax_tf.predict.output_files import Labels, OutputFiles, confident_part
from kmax_tf.run_folder import layout


@pytest.fixture(scope="module")
def photos(exported):
    """The folder of the validation images that the records are of."""
    return str(pathlib.Path(exported.experiment.data_dir).parent / "val")


def run(segmenter, paths, folder, **options):
    """Predicts as the script does; returns what was skipped."""
    _, sources = image_sources.find([str(path) for path in paths])
    written = OutputFiles(str(folder), segmenter.categories, sources, **options)
    skipped = predict.predict_sources(
        segmenter, sources, written.add, batch_size=2, details=written.needs_details
    )
    written.finish()
    return skipped


def test_three_lines(segmenter, photos):
    path = image_sources.find([photos])[1][0].name
    result = segmenter(f"{photos}/{path}")
    assert result.panoptic_map.shape == image_sources.read_image(f"{photos}/{path}").shape[:2]
    for segment in result.segments:
        assert segment.area == (result.panoptic_map == segment.id).sum() > 0
    assert result.assignments is None


def test_files_are_what_the_evaluator_sees(segmenter, exported, predict_batch, photos, tmp_path):
    assert run(segmenter, [photos], tmp_path) == []
    content = json.loads((tmp_path / "predictions.json").read_text())
    found = {a["image_id"]: a for a in content["annotations"]}
    seen = list(predictor.predict_split(exported.experiment, predict_batch, lambda _, image: image))
    assert len(found) == len(seen) == 3
    categories = exported.experiment.dataset.categories
    for image in seen:
        annotation = found[int(image.image_id)]
        path = tmp_path / "predictions" / annotation["file_name"]
        ids = label_png.decode_ids(path.read_bytes(), "png")
        np.testing.assert_array_equal(ids, image.segment_map)
        for segment in annotation["segments_info"]:
            index = image.segment_class[segment["id"] - 1]
            assert segment["category_id"] == categories[index].id
            assert segment["area"] == (ids == segment["id"]).sum()
    assert {i["file_name"] for i in content["images"]} == {image.name for image in seen}
    assert len(list((tmp_path / "overlays").iterdir())) == 3
    assert Image.open(tmp_path / "contact_sheet.png").width > 3 * 300


def test_cluster_assignments_beside_prediction_and_label(
    segmenter, exported, photos, tmp_path, capsys
):
    labels = str(pathlib.Path(photos).parent / "panoptic_val")
    run(segmenter, [photos], tmp_path / "a", cluster_assignments=True)
    with pytest.raises(InputError, match="panoptic_val.json: 3 categories are not of the export"):
        Labels(f"{labels}.json", labels, segmenter.categories[3:])
    labels = Labels(f"{labels}.json", labels, segmenter.categories)
    capsys.readouterr()
    run(segmenter, [photos], tmp_path / "b", cluster_assignments=True, labels=labels)
    for name in (source.stem for source in image_sources.find([photos])[1]):
        without, with_label = (
            Image.open(tmp_path / run / "cluster_assignments" / f"{name}.png") for run in "ab"
        )
        # Image, the toy's one decoder and the prediction fill a row; the label begins another.
        assert with_label.width == without.width and with_label.height > 1.9 * without.height
    assert "have no label" not in capsys.readouterr().out


def test_cluster_assignments_of_a_large_photo_are_drawn_small(tmp_path):
    """At its size, the picture took 131 bytes for each of its pixels."""
    image = np.random.default_rng(0).integers(0, 256, (2000, 1500, 3), np.uint8)
    zeros = np.zeros(image.shape[:2], np.int32)
    result = predict.Segmentation(zeros, [], image, (), assignments=np.stack([zeros] * 6))
    source = image_sources.Source("a.png", "a", "a", None)
    written = OutputFiles(str(tmp_path), (), [source], cluster_assignments=True)
    written.add(source, result)
    sheet = Image.open(tmp_path / "cluster_assignments/a.png")
    assert 3 * 768 < sheet.width < 3 * 768 + 100 and sheet.height < 3 * 1024 + 200
    assert Image.open(tmp_path / "overlays/a.png").size == (1500, 2000)


def test_a_label_is_found_by_the_name_without_its_folder_if_it_is_the_only_one(tmp_path, capsys):
    images = ("day1/a.png", "day1/b.png", "day2/b.png")
    annotations = [
        {"image_id": i, "file_name": name, "segments_info": []} for i, name in enumerate(images)
    ]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "digit 0", "isthing": 1}],
    }
    categories = datasets.load("panoptic_digits").categories
    (tmp_path / "own.json").write_text(json.dumps(content))
    labels = Labels(str(tmp_path / "own.json"), str(tmp_path), categories)
    for name in images:
        write_atomic(str(tmp_path / name), visualize.png(np.zeros([2, 2, 3], np.uint8)))
    names = ("a.png", "b.png", "day2/b.png", "day3/c.png", "day3/a.png", "own/day1/a.png")
    found = {name: labels.of(name) for name in names}
    assert [n for n, label in found.items() if label] == ["a.png", "day2/b.png", "own/day1/a.png"]

    sources = image_sources.find([str(tmp_path / "day1")])[1]
    out = OutputFiles(
        str(tmp_path / "out"), categories, sources, cluster_assignments=True, labels=labels
    )
    image = np.zeros((2, 2, 3), np.uint8)
    result = predict.Segmentation(np.zeros((2, 2), np.int32), [], image, categories, assignments=[])
    for source in sources:
        out.add(source, result)
    out.finish()
    assert "1 of 2 images have no label in " in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(2, 2), (4, 2)])
def test_a_label_of_another_size_is_counted_and_not_drawn(shape, tmp_path, capsys):
    """The photo would be stretched under it, as one that EXIF turns and its label is not."""
    photo, content = tmp_path / "photos/a.png", {"categories": [], "annotations": []}
    write_atomic(str(photo), visualize.png(np.zeros([2, 4, 3], np.uint8)))
    write_atomic(str(tmp_path / "own/a.png"), visualize.png(np.zeros([*shape, 3], np.uint8)))
    content["categories"] += [{"id": 1, "name": "digit 0", "isthing": 1}]
    content["annotations"] += [{"image_id": 1, "file_name": "a.png", "segments_info": []}]
    content["images"] = [{"id": 1, "file_name": "a.png"}]
    (tmp_path / "own.json").write_text(json.dumps(content))
    categories = datasets.load("panoptic_digits").categories
    labels = Labels(str(tmp_path / "own.json"), str(tmp_path / "own"), categories)
    [source], sheets = image_sources.find([str(photo)])[1], []
    result = predict.Segmentation(
        np.zeros((2, 4), np.int32), [], source.read(), categories, assignments=[]
    )
    for shown in (labels, None):
        options = dict(cluster_assignments=True, labels=shown)
        written = OutputFiles(str(tmp_path / "out"), categories, [source], **options)
        written.add(source, result)
        written.finish()
        sheets.append((tmp_path / "out/cluster_assignments/a.png").read_bytes())
    assert sheets[0] == sheets[1]
    assert "1 of 1 images have a label of another size, not drawn, in " in capsys.readouterr().out


def test_what_is_not_sure_is_void():
    panoptic_map = np.array([[1, 1, 2, 2], [1, 1, 2, 3], [0, 1, 2, 3]], np.int32)
    confidence = np.array([[0.9, 0.5, 0.9, 0.9], [0.9, 0.9, 0.9, 0.2], [0.9, 0.9, 0.9, 0.3]])
    segments = [
        predict.Segment(1, 7, True, 0.8, 5, [0, 0, 2, 3]),
        predict.Segment(2, 8, True, 0.6, 5, [2, 0, 2, 3]),
        predict.Segment(3, 9, False, 0.9, 2, [3, 1, 1, 2]),
    ]
    image = np.zeros((3, 4, 3), np.uint8)
    result = predict.Segmentation(panoptic_map, segments, image, (), confidence)
    sure, kept = confident_part(result, 0.7)
    np.testing.assert_array_equal(sure, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])
    assert kept == [segments[0]._replace(area=4, box=[0, 0, 2, 3])]


def test_pseudo_labels_become_records(segmenter, exported, photos, tmp_path):
    results = [segmenter(f"{photos}/{s.name}") for s in image_sources.find([photos])[1]]
    scores = np.unique([s.score for r in results for s in r.segments])
    # Between two scores, for one that is equal may round to either side.
    confidence = float(scores[len(scores) // 2 - 1 :][:2].mean())
    run(segmenter, [photos], tmp_path, confidence=confidence)
    labels = str(tmp_path / "pseudo_labels")
    source = coco_format.read([photos], [f"{labels}.json"], [labels])
    convert.convert(
        *source, str(tmp_path / "out"), "pseudo", run=lambda f, jobs: pool.run(f, jobs, 1)
    )
    assert same_classes(source[1].categories, exported.experiment.dataset.categories)
    records = [
        example.parse(record)
        for path in shards.paths(str(tmp_path / "out"), "pseudo")
        for record in shards.read(path)
    ]
    assert len(records) == 3 and any(r.segment_map.numpy().any() for r in records)
    for record in records:
        result = segmenter(f"{photos}/{record.filename.numpy().decode()}", details=True)
        sure, segments = confident_part(result, confidence)
        assert 0 < (sure == 0).mean() < 1
        ids = np.array([0, *record.segment_id.numpy()])[record.segment_map.numpy()]
        np.testing.assert_array_equal(ids, sure)
        assert record.category_id.numpy().tolist() == [s.category_id for s in segments]


def test_images_of_one_name_are_all_there(segmenter, photos, tmp_path):
    [first, second, *_] = (pathlib.Path(photos) / s.name for s in image_sources.find([photos])[1])
    for folder, path in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"1{path.suffix}").write_bytes(path.read_bytes())
    assert run(segmenter, [tmp_path / "a", tmp_path / "b"], tmp_path / "out") == []
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    for annotation, path in zip(content["annotations"], (first, second), strict=True):
        ids = label_png.decode_ids(
            (tmp_path / "out/predictions" / annotation["file_name"]).read_bytes(), "png"
        )
        np.testing.assert_array_equal(ids, segmenter(str(path)).panoptic_map)
    assert len({image["id"] for image in content["images"]}) == 2


def test_our_predictions_of_padded_names_are_scored_by_our_tool(segmenter, photos, tmp_path):
    names = ("000001.jpg", "000002.jpg", "1e3.jpg")
    (tmp_path / "images").mkdir()
    for name, source in zip(names, image_sources.find([photos])[1], strict=True):
        (tmp_path / "images" / name).write_bytes(pathlib.Path(photos, source.name).read_bytes())
    run(segmenter, [tmp_path / "images"], tmp_path / "out")
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, "1e3"]
    found = str(tmp_path / "out/predictions")
    # The same segments as ground truth, with the ids of four datasets.
    for ids in (("000001", "000002", "1e3"), (1, 2, 3), (7, 8, 9), ("x", "y", "z")):
        for entry, annotation, i in zip(content["images"], content["annotations"], ids):
            entry["id"] = annotation["image_id"] = i
        (tmp_path / "gt.json").write_text(json.dumps(content))
        truth = str(tmp_path / "gt.json"), found
        assert panoptic_quality(*truth, f"{found}.json", found)["All"]["pq"] == 1.0


def test_a_list_of_any_forms_and_sizes_is_predicted_in_its_order(segmenter, photos, monkeypatch):
    monkeypatch.setattr(segmenter_module, "_default_batch", lambda: 2)  # as on a GPU: more than 1
    paths = [pathlib.Path(photos, source.name) for source in image_sources.find([photos])[1]]
    images = [image_sources.read_image(str(path)) for path in paths]
    images.insert(1, images[0][:-8, :-16])
    expected = [segmenter.predict(image) for image in images]
    rgba = [np.dstack([image, image[..., 0]]) for image in images]
    pillow = map(Image.fromarray, images)
    mixed = [str(paths[0]), images[1], *paths[1:]]
    for given in (images, tuple(rgba), pillow, mixed):
        for result, right, image in zip(segmenter.predict(given), expected, images, strict=True):
            np.testing.assert_array_equal(result.panoptic_map, right.panoptic_map)
            np.testing.assert_array_equal(result.image, image)
            assert result.panoptic_map.shape == image.shape[:2]
    assert segmenter.predict([]) == []
    for given, message in (
        (np.stack(images[2:]), r"image: has shape \[2, 97, 97, 3\]"),
        (images[0] / 255, "image: is float64 with values 0 to 1"),
        (["a.jpg"], "a.jpg: cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            segmenter.predict(given)


def files_below(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_files_of_an_earlier_run_are_removed_and_nothing_else(segmenter, photos, tmp_path, capsys):
    paths = [f"{photos}/{source.name}" for source in image_sources.find([photos])[1]]
    out = tmp_path / "out"
    own = {"notes.txt", "overlays/mine.png", "predictions/mine.png", "pseudo_labels/mine.png"}
    for name in own:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    everything = {"cluster_assignments": True, "confidence": 0.5}
    run(segmenter, paths[:2], out, **everything)
    assert "removed" not in capsys.readouterr().out
    run(segmenter, paths[1:], out)
    assert f"removed 11 files of an earlier run from {out}" in capsys.readouterr().out
    run(segmenter, paths[1:], tmp_path / "fresh")
    assert files_below(out) == files_below(tmp_path / "fresh") | own
    assert all((out / name).read_bytes() == b"mine" for name in own)


@pytest.mark.parametrize(
    "name", ["overlays/a.png", "predictions.json", "contact_sheet.png", "pseudo_labels.json"]
)
def test_what_no_earlier_run_wrote_is_not_overwritten(name, segmenter, photos, tmp_path):
    """Such as the photo itself: `kmax predict EXPORT overlays --out .`"""
    mine = tmp_path / name
    source = image_sources.find([photos])[1][0]._replace(stem="a")
    predict.write_predictions(segmenter, [source._replace(stem="b")], str(tmp_path))
    if name.startswith("overlays"):
        mine.write_bytes(b"mine")
    else:
        for path in tmp_path.glob("*.*"):
            path.unlink()  # or it was of the earlier run
        mine.write_bytes(b"mine")
    before = files_below(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=f"^{mine}: would be overwritten, .*; choose another"):
            predict.write_predictions(segmenter, [source], str(tmp_path))
        assert files_below(tmp_path) == before and mine.read_bytes() == b"mine"
    mine.unlink()
    predict.write_predictions(segmenter, [source], str(tmp_path))


def test_a_removal_that_is_interrupted_stops_no_later_run(segmenter, photos, tmp_path, monkeypatch):
    remove, source = tf.io.gfile.remove, image_sources.find([photos])[1][0]
    for removed in range(4):
        predict.write_predictions(segmenter, [source], str(tmp_path))
        left = [None] * removed

        def stop(path, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            remove(path)

        with monkeypatch.context() as patched:
            patched.setattr(tf.io.gfile, "remove", stop)
            with pytest.raises(KeyboardInterrupt):
                predict.write_predictions(segmenter, [source], str(tmp_path))
    predict.write_predictions(segmenter, [source], str(tmp_path))
    assert len(files_below(tmp_path)) == 4


def test_files_of_an_earlier_run_are_no_images(segmenter, photos, tmp_path, monkeypatch):
    """Where they lie in the folder of the images."""
    paths = [f"{photos}/{source.name}" for source in image_sources.find([photos])[1]]
    for k, path in enumerate(paths):
        (tmp_path / str(k)).mkdir()
        shutil.copy(path, tmp_path / str(k))
    segmenter.predict_to_coco(tmp_path, tmp_path)
    written = files_below(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    segmenter.predict_to_coco([f"~/{tmp_path.name}"], f"~/{tmp_path.name}")
    assert files_below(tmp_path) == written


def test_the_contact_sheet_shows_the_first_images(segmenter, photos, tmp_path, monkeypatch):
    """Whichever thread is done first."""
    monkeypatch.setattr(output_files, "SHEET", 2)
    _, sources = image_sources.find([photos])
    for name, order in (("a", sources), ("b", sources[::-1])):
        written = OutputFiles(str(tmp_path / name), segmenter.categories, sources)
        for source in order:
            written.add(source, segmenter.predict(source.read()))
        written.finish()
    assert len(sources) == 3
    sheets = [(tmp_path / name / "contact_sheet.png").read_bytes() for name in "ab"]
    assert sheets[0] == sheets[1]


def test_images_of_many_sizes_wait_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(segmenter_module, "MOST_PIXELS", 1000)
    given, waiting = [], []

    def read():
        for k in range(1, 21):
            given.append(k)
            yield k, np.zeros((k, 100, 3), np.uint8)

    for batch in segmenter_module._batches(read(), 8, lambda image: False):
        waiting.append(sum(100 * k for k in given))
        given = [k for k in given if k not in [number for number, _ in batch]]
    assert max(waiting[:-1]) <= 1000 + 2000 and not given


def reading(pixels, asked):
    """A source of an image of so many pixels, which notes that it is asked for."""

    def read():
        asked.append(pixels)
        return np.zeros((1, pixels, 3), np.uint8)

    return image_sources.Source("a.png", "a", "a", read)


def test_reading_ahead_shrinks_when_images_grow(monkeypatch):
    monkeypatch.setattr(segmenter_module, "MOST_PIXELS", 1000)
    asked, given = [], 0
    sources = [reading(pixels, asked) for pixels in [1] * 12 + [1000] * 12]

    class AtOnce:
        def submit(self, read):
            image = read()
            return types.SimpleNamespace(result=lambda: image)

    for _ in segmenter_module._read_ahead(AtOnce(), sources, None):
        given += 1
        waiting = asked[given:]
        assert len(waiting) <= segmenter_module.AHEAD
        if given > 12 + segmenter_module.AHEAD:
            assert len(waiting) <= 1
    assert given == len(asked) == 24


FULL = "OOM when allocating tensor with shape[1000"  # as TensorFlow says it


@pytest.mark.slow  # TensorFlow waits ten seconds for memory
def test_this_is_how_memory_is_full():
    @tf.function(autograph=False)
    def allocate(count):
        return tf.reduce_sum(tf.random.stateless_uniform([count], [0, 0]))

    with pytest.raises(tf.errors.ResourceExhaustedError) as refused:
        allocate(tf.constant(10**14, tf.int64))
    assert segmenter_module.reason(refused.value).startswith(FULL)


class Small:
    """A SavedModel that runs out of memory as TensorFlow's do, above so many images at once."""

    def __init__(self, fits):
        self.fits, self.tried = fits, []
        self.signatures = {"uint8": self.run}

    def run(self, images):
        self.tried.append(len(images))
        if len(images) > self.fits:
            raise tf.errors.ResourceExhaustedError(None, None, FULL)
        maps = tf.cast(images[..., 0], tf.int32)
        nothing = np.zeros((len(images), 0))
        names = ("segment_id", *predict.Segment._fields[1:])
        return {"panoptic_map": maps} | {name: tf.constant(nothing) for name in names}


def brightness(count):
    """Sources of small images with the pixels 1, 2, 3 ..."""
    return [
        image_sources.Source(
            f"{k}.png", str(k), str(k), lambda k=k: np.full((4, 5, 3), k, np.uint8)
        )
        for k in range(1, count + 1)
    ]


def test_a_batch_that_does_not_fit_into_memory_is_halved(capsys):
    model, seen = Small(fits=2), {}
    segmenter = predict.Segmenter(model, ())
    keep = lambda source, result: seen.update({source.name: result.panoptic_map.max()})  # noqa: E731
    assert predict.predict_sources(segmenter, brightness(20), keep, batch_size=8) == []
    assert seen == {f"{k}.png": k for k in range(1, 21)}
    assert model.tried == [8, 4] + [2] * 10  # and is not tried again as a whole
    lines = [line for line in capsys.readouterr().out.splitlines() if "fit into memory" in line]
    assert len(lines) == 2 and "--batch_size=2 " in lines[1]
    assert all(f"memory ({FULL}" in line for line in lines)
    results = predict.Segmenter(Small(fits=1), ()).predict([s.read() for s in brightness(3)])
    assert [result.panoptic_map.max() for result in results] == [1, 2, 3]


def test_an_image_that_does_not_fit_into_memory_is_skipped_with_the_reason():
    segmenter = predict.Segmenter(Small(fits=0), ())
    skipped = predict.predict_sources(segmenter, brightness(2), None, batch_size=2)
    for source, error in skipped:
        assert str(error).startswith(f"{source.name}: {FULL}")
    assert len(skipped) == 2


def test_tiles_that_do_not_fit_into_memory_are_fewer(exported, tmp_path, capsys):
    size, tried = exported.experiment.evaluation_size, []
    shutil.copytree(exported.folder, tmp_path / "tiled")
    described = json.loads((tmp_path / "tiled/categories.json").read_text())
    described["tiles"] = {"size": size, "scale": 1.0, "overlap": 16}
    (tmp_path / "tiled/categories.json").write_text(json.dumps(described))
    photo = np.random.default_rng(0).integers(0, 256, (150, 230, 3), np.uint8)
    expected = predict.load(str(tmp_path / "tiled")).predict(photo)
    segmenter = predict.load(str(tmp_path / "tiled"))
    whole = segmenter._model.predict

    def small(canvases):
        tried.append(len(canvases))
        if len(canvases) > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return whole(canvases)

    segmenter._model.predict = small
    np.testing.assert_array_equal(segmenter.predict(photo).panoptic_map, expected.panoptic_map)
    assert tried == [8, 4, 2, 2, 2]  # 2 x 3 tiles
    assert "8 tiles at once do not fit into memory (OOM" in capsys.readouterr().out


def test_images_whose_masks_exceed_the_memory_are_skipped(monkeypatch):
    """The kernel would end the process without a line: 1 GB is free, one image takes 1.3."""
    free = types.SimpleNamespace(available=10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    model = Small(fits=8)
    sources = [
        image_sources.Source(name, name, name, lambda w=width: np.zeros((1000, w, 3), np.uint8))
        for name, width in (("small.png", 700), ("large.png", 1000))
    ]
    segmenter = predict.Segmenter(model, (), merged_clusters=100)
    [(source, error)] = predict.predict_sources(segmenter, sources, lambda *_: None)
    assert source.name == "large.png" and model.tried == [1]
    assert str(error) == (
        "large.png: 1000 x 1000 pixels need 1.3 GB, and 1.0 GB are free; scale it down"
    )
    assert predict.predict_sources(predict.Segmenter(model, ()), sources, lambda *_: None) == []


def test_details_count_in_the_memory_of_an_image(segmenter, monkeypatch):
    """12 bytes for a pixel and each decoder, of which the toy has one."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    image = np.zeros((100, 200, 3), np.uint8)
    for free, fits in ((240_000, True), (239_999, False)):
        available = types.SimpleNamespace(available=free)
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: available)
        segmenter.predict(image)
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match="; scale it"):
            segmenter.predict(image, details=True)


def test_files_of_an_earlier_run_are_found_by_few_requests(
    segmenter, photos, tmp_path, monkeypatch
):
    """On gs:// each takes its time, and a run may have written 100,000 images."""
    requests, counts = collections.Counter(), []
    run(segmenter, [photos], tmp_path / "out")
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    for name in ("exists", "isdir", "stat", "listdir", "glob"):
        asked = getattr(tf.io.gfile, name)

        def count(*words, name=name, asked=asked):
            requests[name] += 1
            return asked(*words)

        monkeypatch.setattr(tf.io.gfile, name, count)
    for more in range(3, 43, 20):
        for k in range(more):
            name = f"{k}.png"
            content["images"].append({"id": f"{more}-{k}", "file_name": f"{more}-{name}"})
            entry = {"image_id": f"{more}-{k}", "file_name": name, "segments_info": []}
            content["annotations"].append(entry)
            (tmp_path / "out/overlays" / name).write_bytes(b"")
        (tmp_path / "out/predictions.json").write_text(json.dumps(content))
        requests.clear()
        found = output_files.earlier(str(tmp_path / "out"))
        counts.append((len(found), requests.total()))
    (few, asked), (many, asked_again) = counts
    assert many > few + 10 and asked == asked_again < 30


def test_files_of_an_interrupted_run_are_removed(segmenter, photos, tmp_path, capsys):
    paths = [f"{photos}/{source.name}" for source in image_sources.find([photos])[1]]
    out, sources = tmp_path / "out", image_sources.find([photos])[1]
    (out / "overlays").mkdir(parents=True)
    (out / "overlays/mine.png").write_bytes(b"mine")
    written = OutputFiles(str(out), segmenter.categories, sources, confidence=0.5)

    def stop(source, *rest):
        written.add(source, *rest)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict.predict_sources(segmenter, sources, stop, batch_size=1, details=True)
    assert not (out / "predictions.json").exists()
    left = len(files_below(out)) - 2  # without mine, and the list of names
    assert left >= 3
    run(segmenter, paths[2:], out)
    assert f"removed {left} files of an earlier run from {out}\n" in capsys.readouterr().out
    run(segmenter, paths[2:], tmp_path / "fresh")
    assert files_below(out) == files_below(tmp_path / "fresh") | {"overlays/mine.png"}


@pytest.mark.parametrize(
    "content", ["no JSON", "7", "[7]", '["../a.png"]', '["/a.png"]', '{"a": 1}']
)
def test_a_list_of_names_that_is_not_ours_stops(content, segmenter, tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    (tmp_path / "unfinished.json").write_text(content)
    with pytest.raises(InputError, match="unfinished.json: .*; "):
        OutputFiles(str(tmp_path), segmenter.categories, [])
    assert files_below(tmp_path) == {"a.png", "unfinished.json"}


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "{}",
        '{"images": [], "annotations": [], "categories": []}',
        '{"images": [{"id": 1, "file_name": "mine.png"}], "annotations": [{"image_id": 1,'
        ' "file_name": "mine.png", "segments_info": []}],'
        ' "categories": [{"id": 1, "name": "a", "isthing": 1}]}',
        '{"images": [{"id": 1, "file_name": "mine.png"}], "annotations": [{"image_id": 1,'
        ' "file_name": "../photos/mine.png", "segments_info": []}],'
        ' "categories": [{"id": 1, "name": "a", "isthing": 1}]}',
        '{"images": [{"id": 1, "file_name": "mine.png"}], "annotations": [{"image_id": 1,'
        ' "file_name": "FOLDER/photos/mine.png", "segments_info": []}],'
        ' "categories": [{"id": 1, "name": "a", "isthing": 1}]}',
    ],
)
def test_predictions_that_are_not_ours_delete_nothing(content, segmenter, tmp_path, capsys):
    for name in ("predictions/mine.png", "photos/mine.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "overlays").mkdir()
    (tmp_path / "predictions.json").write_text(content.replace("FOLDER", str(tmp_path)))
    before = files_below(tmp_path)
    with pytest.raises(InputError, match="predictions.json: would be overwritten"):
        OutputFiles(str(tmp_path), segmenter.categories, [])
    assert files_below(tmp_path) == before and not capsys.readouterr().out


def test_one_bad_name_does_not_stop_the_others(segmenter, tmp_path, capfd):
    names = ("line\nbreak.png", "\x1b[31m.png", "n" * 246 + ".png", "é" * 123 + ".png", "-a.png")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (*names, "bad\udcff.png"):
        Image.fromarray(np.zeros((9, 17, 3), np.uint8)).save(folder / name)
    [(source, _)] = run(segmenter, [folder], tmp_path / "out")
    assert source.name == "bad\udcff.png"
    printed = capfd.readouterr().out
    assert f"skipped: {folder}/bad\\udcff.png: the name is not UTF-8; rename it\n" in printed
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {image["file_name"] for image in content["images"]} == set(names)
    for kind in ("predictions", "overlays"):
        assert {path.name for path in (tmp_path / "out" / kind).iterdir()} == set(names)
    assert Image.open(tmp_path / "out/contact_sheet.png").width < 5 * 600


def spoiled(rng):
    """A JPEG or PNG of a few pixels with a few bytes changed, cut off or put in."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 17, 3)).astype(np.uint8))
    content = io.BytesIO()
    mode, kind = rng.choice([("RGB", "PNG"), ("P", "PNG"), ("RGB", "JPEG"), ("CMYK", "JPEG")])
    image.convert(mode).save(content, kind)
    content, place = bytearray(content.getvalue()), rng.randrange(content.tell())
    if rng.random() < 0.3:
        return bytes(content[:place])
    if rng.random() < 0.3:
        return bytes(content[:place] + rng.randbytes(9) + content[place:])
    for place in rng.sample(range(len(content)), rng.choice([1, 2, 30])):
        content[place] = rng.randrange(256)
    return bytes(content)


def test_two_hundred_spoiled_images(segmenter, tmp_path, capfd):
    rng = random.Random(0)
    for i in range(200):
        (tmp_path / f"{i:03}.png").write_bytes(spoiled(rng))
    skipped = run(segmenter, [tmp_path], tmp_path / "out")
    assert 20 < len(skipped) < 180
    printed = "".join(capfd.readouterr())
    for source, error in skipped:
        assert source.name in str(error) and f"skipped: {error}" in printed
    done = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert len(done) + len(skipped) == 200
    assert not {image["file_name"] for image in done} & {source.name for source, _ in skipped}


def test_missing_and_older_exports_are_named(exported, tmp_path):
    with pytest.raises(InputError, match="categories.json"):
        predict.load(str(tmp_path / "nothing"))
    (tmp_path / "categories.json").write_bytes(
        pathlib.Path(exported.folder, "categories.json").read_bytes()
    )
    with pytest.raises(InputError, match="export it again"):
        predict.load(str(tmp_path))
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(InputError, match="older version; export it again"):
        predict.load(str(tmp_path))


def test_a_run_is_told_from_an_export(tmp_path):
    run_dir = str(tmp_path / "run")
    write_atomic(layout.config(run_dir), "")
    best = layout.best_export(run_dir)
    with pytest.raises(InputError, match=f"^{run_dir}: is a run, no export; give {best}, or exp"):
        predict.load(run_dir)


@pytest.mark.parametrize("words", [[], ["--cluster_assignments"]])
def test_the_folder_of_labels_needs_their_list(words):
    with pytest.raises(SystemExit, match="--gt_folder has the PNG files of --gt_json: add that"):
        commands.main(["predict", "export", "photos", "--gt_folder=labels", *words])


@pytest.mark.parametrize("positional", [True, False])
def test_command_line(positional, exported, photos, run_script, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    if positional:
        commands.main(["predict", exported.folder, *out, photos])  # images after a flag, too
    else:
        run_script("predict.py", f"--export={exported.folder}", f"--images={photos}", *out)
    assert "3 images, 0 skipped" in capsys.readouterr().out
    assert len(list((tmp_path / "out/predictions").iterdir())) == 3
