"""The evaluator: each checkpoint of a running training once, and nothing lost on the way."""

import csv
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from stubs import Stub

from data_prep import coco_format, convert, pool
from kmax_tf import config
from kmax_tf.data import datasets, segment_counts
from kmax_tf.data.evaluation_input import evaluation_images
from kmax_tf.data.records import example, reader, serialize, shards
from kmax_tf.data.transforms.targets import class_indices
from kmax_tf.errors import InputError
from kmax_tf.evaluation import baseline, bootstrap, evaluate
from kmax_tf.evaluation.metrics import quality_of_counts
from kmax_tf.experiment import Experiment
from kmax_tf.files import write_atomic
from kmax_tf.inference import predictor
from kmax_tf.model.postprocess import Panoptic
from kmax_tf.run_folder import checkpoint, layout, provenance

ROOT = pathlib.Path(__file__).parents[2]


def labels(experiment):
    paths = shards.paths(experiment.data_dir, experiment.evaluation_split)
    return [example.parse(r) for path in paths for r in shards.read(path)]


def perfect_predictor(experiment):
    """Answers each batch with the labels, crowd left out, in the order of the records."""
    waiting = labels(experiment)

    def predict(image):
        maps, classes = [], []
        batch = [waiting.pop(0) for _ in range(min(len(waiting), image.shape[0]))]
        for item in batch + batch[:1] * (image.shape[0] - len(batch)):  # filled up
            crowd = np.concatenate([[False], item.is_crowd.numpy()])
            maps.append(np.where(crowd[item.segment_map], 0, item.segment_map))
            row = np.full(20, -1)
            row[: len(crowd) - 1] = class_indices(experiment.dataset, item.category_id)
            classes.append(row)
        semantic = [np.append(row, 0)[m - 1] for row, m in zip(classes, maps, strict=True)]
        scores = tf.ones([image.shape[0], 20])
        maps, classes, semantic = (tf.constant(v, tf.int32) for v in (maps, classes, semantic))
        return Panoptic(maps, classes, scores, scores, semantic), []

    return predict


def test_labels_as_predictions_are_perfect(tiny, tmp_path):
    experiment = tiny()
    metrics, counts, examples = evaluate.evaluate(experiment, perfect_predictor(experiment), step=7)
    assert metrics["num_images"] == 3 and metrics["step"] == 7
    for name in ("PQ", "PQ_things", "PQ_stuff", "recall", "recall_things", "AP", "mIoU"):
        assert metrics[name] == pytest.approx(100)
    for c in metrics["classes"]:
        assert c["PQ"] == c["IoU"] == 100 and c["fp"] == c["fn"] == 0 and c["tp"] > 0
    assert metrics["confusion"] == []
    assert list(counts.image_id) == [item.image_id.numpy().decode() for item in labels(experiment)]
    pictures = examples.write(str(tmp_path))
    assert [(p["role"], p["PQ"], p["missed"]) for p in pictures] == [("first", 100, {})] * 3


@pytest.mark.slow
def test_several_replicas_give_what_one_gives(tiny, exported, two_replicas):
    names = ("thing_threshold", "stuff_threshold", "overlap_threshold")
    experiment = tiny(*(f"postprocess.PostProcess.{name} = 0.0" for name in names))
    results, maps = [], []
    for strategy in (tf.distribute.OneDeviceStrategy("/cpu:0"), two_replicas):
        with strategy.scope():
            model = experiment.build_evaluation_model()
            for ours, theirs in zip(model.variables, exported.model.variables, strict=True):
                ours.assign(theirs)
            predict = predictor.build_predictor(model, experiment)
            results.append(evaluate.evaluate(experiment, predict, step=1))
            images = predictor.predict_split(experiment, predict, lambda _, image: image)
            maps.append([image.segment_map.tobytes() for image in images])
    (metrics, counts, _), (other_metrics, other_counts, _) = results
    assert metrics == other_metrics and metrics["mIoU"] > 0
    for ours, theirs in zip(counts, other_counts, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert maps[0] == maps[1] and len(set(maps[0])) == 3


def write_images(folder, images):
    """Writes records of images without labels, uint8 [height, width, 3], as split "val"."""
    folder.mkdir()
    dataset = datasets.load("panoptic_digits")
    size = datasets.Split(len(images), 1)
    description = datasets.with_split(str(folder), dataset, "val", size)
    (folder / datasets.FILE_NAME).write_text(description)
    with tf.io.TFRecordWriter(str(folder / shards.name("val", 0, 1))) as writer:
        for number, image in enumerate(images):
            record = serialize.record(
                image=tf.io.encode_png(image).numpy(),
                filename=f"{number}.png",
                image_id=str(number),
                segment_map=None,
                segment_id=[],
                category_id=[],
                is_crowd=[],
            )
            writer.write(record)


def nearest(values, size):
    """Resizes an array by nearest neighbor, corners aligned."""
    for axis, length in enumerate(size):
        step = (values.shape[axis] - 1) / (length - 1)
        values = values.take(np.floor(np.arange(length) * step + 0.5).astype(int), axis)
    return values


@pytest.mark.parametrize("enlarges, first", [(True, (43, 97)), (False, (40, 90))])
def test_maps_are_taken_from_the_canvas_back_to_the_size_of_the_image(
    tiny, tmp_path, enlarges, first
):
    """As NumPy does it, with a model that answers with the colors of what it sees."""
    shapes, fitted = ((40, 90), (150, 60)), (first, (97, 38))
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    write_images(tmp_path / "records", images)
    experiment = tiny(
        f'experiment.Experiment.data_dir = "{tmp_path}/records"',
        f"training_input.TrainingInput.resize_to_crop = {enlarges}",
    )

    def predict(image):
        red, green, _ = tf.unstack(tf.cast(tf.round(image), tf.int32), axis=-1)
        one = tf.zeros([image.shape[0], 1])
        return Panoptic(red, tf.cast(one, tf.int32), one, one, green), []

    made = list(predictor.predict_split(experiment, predict, lambda _, image: image))
    assert [image.image_id for image in made] == ["0", "1"]
    for image, shape, size in zip(made, shapes, fitted, strict=True):
        canvas = image.canvas()
        assert canvas.shape == (97, 97, 3) and tuple(image.fitted_size) == size
        np.testing.assert_array_equal(canvas[size[0] :], 128)  # gray, rounded
        np.testing.assert_array_equal(canvas[:, size[1] :], 128)
        expected = nearest(canvas[: size[0], : size[1]].astype(int), shape)
        np.testing.assert_array_equal(image.segment_map, expected[..., 0])
        np.testing.assert_array_equal(image.semantic_map, expected[..., 1])
    if not enlarges:  # as it is in the file
        np.testing.assert_array_equal(made[0].segment_map, images[0][..., 0])


@pytest.mark.slow
def test_evaluates_the_checkpoints_of_a_running_training(tiny, tmp_path):
    tiny()  # writes the gin file
    run_dir = tmp_path / "run"

    def start(script, *flags):
        command = [sys.executable, ROOT / "scripts" / script, f"--run_dir={run_dir}", *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    evaluator = start("evaluate.py", "--wait=300")
    assert start("train.py", f"--gin_file={tmp_path / 'tiny.gin'}").wait() == 0
    output, _ = evaluator.communicate(timeout=300)
    assert evaluator.returncode == 0
    steps = [line.split(":")[0] for line in output.splitlines() if line.startswith("step")]
    assert steps == ["step 1", "step 2", "step 3", "step 4"]
    assert output.startswith("trivial baseline (all pixels ")
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["step"] == 4 and metrics["num_images"] == 3
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    stored = [json.loads(p.read_text()) for p in sorted((run_dir / "eval").glob("metrics-*.json"))]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    figures = {"PQ", "PQ_things", "SQ_stuff", "RQ", "recall", "AP", "AP50", "mIoU", "num_images"}
    assert figures < rows[0].keys() and "checkpoint" not in rows[0]
    for row, expected in zip(rows, stored, strict=True):
        assert {k: float(v) if v else None for k, v in row.items()} == {k: expected[k] for k in row}
    assert (run_dir / "report.html").stat().st_size > 10_000
    [pictures, *_] = (run_dir / "eval" / "pictures").iterdir()
    names = {p.name for p in pictures.iterdir()}
    assert names == {"image.webp", "label.webp", "prediction.webp", "assignment_1.webp"}
    for folder in ("train", "eval"):
        assert list((run_dir / folder).glob("events.out.tfevents.*"))
    shown = {
        (value.metadata.plugin_data.plugin_name, value.tag.split("/")[0], event.step)
        for path in (run_dir / "eval").glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if "/" in value.tag
    }
    kinds = (("images", "prediction"), ("images", "assignment_1"), ("scalars", "decoder_1"))
    assert shown == {(*kind, step) for kind in kinds for step in (1, 2, 3, 4)}
    evaluated = [json.loads(p.read_text()) for p in (run_dir / "eval").glob("metrics-*.json")]
    best = json.loads((run_dir / "best" / "export" / "best.json").read_text())
    assert best["PQ"] == max(m["PQ"] for m in evaluated)
    assert (run_dir / "best" / "export" / "saved_model.pb").exists()
    lost = (run_dir / "segments.txt").read_text().splitlines()
    assert lost and lost[0].startswith("segments") and "6 images" in lost[0]
    card = (run_dir / "best" / "export" / "model_card.md").read_text()
    assert f"| weights | best/ckpt-{best['step']} |" in card and f"PQ {best['PQ']:.1f}" in card
    assert f"| in training | {lost[0]} |" in card
    counts = bootstrap.read(layout.image_counts(str(run_dir), 4))
    quality = quality_of_counts(counts.sum(), tiny().dataset.categories)
    assert 100 * quality["All"]["pq"] == metrics["PQ"]


def test_corrupt_checkpoint_is_skipped_and_another_runs_is_not_kept(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate.best_checkpoint, "export", lambda *_: None)  # takes long
    experiment = dataclasses.replace(tiny("experiment.Experiment.steps = 2"), model=Stub)
    run_dir = str(tmp_path / "run")
    with pytest.raises(InputError, match="has no checkpoint yet"):
        evaluate.evaluate_run(experiment, run_dir, once=True)
    saver = tf.train.Checkpoint(model=experiment.build_evaluation_model())
    manager = tf.train.CheckpointManager(saver, layout.checkpoints(run_dir), max_to_keep=None)
    corrupt, good = (manager.save(checkpoint_number=step) for step in (1, 2))
    data = pathlib.Path(f"{corrupt}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1000])
    assert evaluate.evaluate_run(experiment, run_dir)["step"] == 2
    output = capsys.readouterr().out
    assert "skipped: " in output and "ckpt-1: cannot be read" in output
    figures, measured = (
        json.loads((tmp_path / "run" / name).read_text())
        for name in ("metrics.json", "eval/baseline.json")
    )
    assert figures["records"] == measured["dataset"]["fingerprint"]
    with pytest.raises(InputError, match="ckpt-1: cannot be read"):
        evaluate.evaluate_run(experiment, run_dir, once=True, checkpoint_path=corrupt)
    # The next evaluator writes what an interrupted one did not.
    (tmp_path / "run" / "metrics.json").unlink()
    measured = (tmp_path / "run/eval/baseline.json").read_text()
    other = json.loads(measured) | {"PQ": 99.0, "dataset": {"files": 1}}  # of other records
    (tmp_path / "run/eval/baseline.json").write_text(json.dumps(other))
    assert evaluate.evaluate_run(experiment, run_dir) is None
    assert (tmp_path / "run/eval/baseline.json").read_text() == measured
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 2
    # The weights of another training, at a step that this run has, too.
    kept = {path: path.read_bytes() for path in tmp_path.glob("run/**/*") if path.is_file()}
    saver.model.step.assign(1.0)
    other = saver.write(str(tmp_path / "other-2"))
    capsys.readouterr()
    assert evaluate.evaluate_run(experiment, run_dir, once=True, checkpoint_path=other)["step"] == 2
    assert f"{other}: not in {run_dir}/checkpoints; nothing is saved" in capsys.readouterr().out
    assert kept == {path: path.read_bytes() for path in tmp_path.glob("run/**/*") if path.is_file()}


def save(run_dir, step, value):
    """Saves the checkpoint of a step; another training has another value."""
    path = checkpoint.path_of(layout.checkpoints(run_dir), step)
    checkpoint.write(tf.train.Checkpoint(weight=tf.Variable(float(value))), path)
    return path


def write_metrics(run_dir, step, of):
    """Writes the metrics of a step, which name the fingerprint of their checkpoint."""
    write_atomic(layout.metrics(run_dir, step), json.dumps({"step": step, "checkpoint": of}))


def steps_left(run_dir):
    """The steps whose figures stay."""
    evaluate._forget_other_training(run_dir, "records")
    return [int(path[-13:-5]) for path in layout.all_metrics(run_dir)]


def test_metrics_are_of_one_checkpoint(tmp_path):
    run_dir = str(tmp_path)
    path = save(run_dir, 3, value=1)
    assert checkpoint.read_metrics(run_dir, path) is None
    write_metrics(run_dir, 3, checkpoint.fingerprint(path))
    assert checkpoint.read_metrics(run_dir, path)["step"] == 3
    save(run_dir, 3, value=2)
    assert checkpoint.read_metrics(run_dir, path) is None
    later = pathlib.Path(layout.metrics(run_dir, 3)).stat().st_mtime + 10
    # Older versions did not name it. A copied folder has its files in any order of time.
    for of, copied in ((None, False), (checkpoint.fingerprint(path), True)):
        os.utime(f"{path}.index")
        write_metrics(run_dir, 3, of)
        assert checkpoint.read_metrics(run_dir, path)["step"] == 3
        os.utime(f"{path}.index", (later, later))
        assert (checkpoint.read_metrics(run_dir, path) is not None) == copied


def test_figures_of_an_earlier_training_go(tmp_path):
    run_dir = str(tmp_path)
    for step in (1, 2, 3, 4):
        write_metrics(run_dir, step, of="the earlier one")
    assert steps_left(run_dir) == [1, 2, 3, 4]  # there is no new one yet
    save(run_dir, 2, value=2)
    assert steps_left(run_dir) == []


def test_figures_of_pruned_checkpoints_stay(tmp_path):
    run_dir = str(tmp_path)
    write_metrics(run_dir, 1, of="a pruned one")
    write_metrics(run_dir, 2, of=checkpoint.fingerprint(save(run_dir, 2, value=2)))
    write_metrics(run_dir, 3, of="one that was replaced")
    save(run_dir, 3, value=3)
    write_metrics(run_dir, 4, of="one that could not be read and went")
    write_metrics(run_dir, 5, of=None)
    assert steps_left(run_dir) == [1, 2, 5]


def test_a_best_checkpoint_without_figures_is_no_rival(tmp_path):
    run_dir = str(tmp_path)
    write_metrics(run_dir, 2, of=checkpoint.fingerprint(save(run_dir, 2, value=2)))
    for step, stays in ((2, True), (7, False)):
        note = pathlib.Path(layout.best_note(layout.best(run_dir)))
        write_atomic(str(note), json.dumps({"step": step, "PQ": 99.0}))
        evaluate._forget_other_training(run_dir, "records")
        assert note.exists() == stays


def test_the_best_checkpoint_stays_if_only_its_figures_are_missing(tmp_path):
    """An evaluator that is killed between the two leaves this."""
    run_dir, note = str(tmp_path), pathlib.Path(layout.best_note(layout.best(tmp_path)))
    present = checkpoint.fingerprint(save(run_dir, 8, value=8))
    for step, of, stays in ((7, "a pruned one", True), (8, present, True), (8, "another", False)):
        content = {"step": step, "PQ": 70.0, "checkpoint": of, "records": "records"}
        write_atomic(str(note), json.dumps(content))
        evaluate._forget_other_training(run_dir, "records")
        assert note.exists() == stays


@pytest.fixture
def without_model(monkeypatch):
    """Evaluations take no time, and have the same figures."""
    figures = {f"{key}{group}": 50.0 for key in ("PQ",) for group in ("", "_things", "_stuff")}
    figures |= {"recall": 50.0, "AP": None, "mIoU": 50.0, "num_images": 3}
    monkeypatch.setattr(Experiment, "build_evaluation_model", lambda self: None)
    monkeypatch.setattr(predictor, "build_predictor", lambda *_: None)
    monkeypatch.setattr(checkpoint, "restore_model", lambda *_: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda e, p, step: ({"step": step, **figures}, 0, 0))


@pytest.mark.usefixtures("without_model")
def test_figures_of_other_settings_or_records_are_not_the_runs(tiny, tmp_path, capsys):
    run_dir, steps = str(tmp_path / "run"), "experiment.Experiment.steps = 2"
    tiny(steps)
    write_atomic(layout.config(run_dir), config.resolved())
    save(run_dir, 2, value=1)

    def refused(experiment, what):
        before = {path: path.read_bytes() for path in tmp_path.glob("run/**/*.*")}
        with pytest.raises(InputError, match=f"{what}.*; --once prints metrics without saving"):
            evaluate.evaluate_run(experiment, run_dir)
        assert evaluate.evaluate_run(experiment, run_dir, once=True)["step"] == 2
        assert re.search(f"{what}.*; nothing is saved\nstep 2: ", capsys.readouterr().out)
        assert before == {path: path.read_bytes() for path in tmp_path.glob("run/**/*.*")}

    name = "postprocess.PostProcess.thing_threshold"
    refused(tiny(steps, f"{name} = 0.1"), f"run: has other values of {name}")
    free = ("data_dir = 'elsewhere'", "evaluation_batch_size = 3", "steps = 9")
    tiny(*(f"experiment.Experiment.{binding}" for binding in free))
    assert provenance.other_settings(run_dir) == []
    path, content = pathlib.Path(layout.metrics(run_dir, 1)), {"step": 1, "checkpoint": "pruned"}
    note = layout.best_note(layout.best(run_dir))
    for place in (str(path), note):
        write_atomic(place, json.dumps(content | {"PQ": 50.0, "records": "others"}))
        refused(tiny(steps), "run: has metrics of other records .to replace them, move .*eval and")
        tf.io.gfile.remove(place)
    # Figures of older versions name none; the baseline of then does.
    write_atomic(layout.baseline(run_dir), json.dumps({"dataset": {"fingerprint": "others"}}))
    write_atomic(str(path), json.dumps(content))
    refused(tiny(steps), "run: has metrics of other records")


def test_a_corrected_class_makes_other_records(tiny, records, tmp_path):
    """The files keep their names and sizes."""
    root, folder = pathlib.Path(records).parent, tmp_path / "records"
    experiment = tiny(f"experiment.Experiment.data_dir = '{folder}'")
    content = json.loads((root / "panoptic_val.json").read_text())

    def convert_and_describe():
        (tmp_path / "val.json").write_text(json.dumps(content))
        paths = root / "val", tmp_path / "val.json", root / "panoptic_val"
        read = coco_format.read(*([str(path)] for path in paths))
        convert.convert(*read, str(folder), "val", 2, functools.partial(pool.run, workers=1))
        found = predictor.evaluation_records(experiment)
        return provenance.describe_records(experiment.dataset, found)

    before = convert_and_describe()
    run_dir, figures = str(tmp_path / "run"), {"step": 1, "records": before["fingerprint"]}
    write_atomic(layout.metrics(run_dir, 1), json.dumps(figures))
    assert convert_and_describe() == before
    segment = content["annotations"][0]["segments_info"][0]
    segment["category_id"] = segment["category_id"] % 10 + 1  # 1 to 10 are the digits
    after = convert_and_describe()
    assert after.pop("fingerprint") != before.pop("fingerprint") and after == before
    with pytest.raises(InputError, match="run: has metrics of other records"):
        evaluate.evaluate_run(experiment, run_dir)


@pytest.fixture
def slow_user(monkeypatch):
    """A function that makes another one slow, and a list: the records that waited at each call."""
    open_files, read, waiting = tf.data.TFRecordDataset, tf.Variable(0), []
    many = tf.data.Options()
    many.threading.private_threadpool_size = 8  # a machine of as many cores

    def count(record):
        read.assign_add(1)
        return record

    def open_and_count(paths):
        return open_files(paths).map(count).with_options(many)

    def slow(function=lambda *_: None):
        def use(*arguments):
            time.sleep(0.1)
            waiting.append(int(read) - len(waiting) - 1)
            return function(*arguments)

        return use

    monkeypatch.setattr(tf.data, "TFRecordDataset", open_and_count)
    return slow, waiting


@pytest.mark.parametrize("kind", ["labels", "images", "baseline", "segment counts"])
def test_images_of_tiles_are_decoded_one_by_one(tiny, tmp_path, monkeypatch, kind, request):
    """They may be large: one is in use, and one waits."""
    experiment = tiny("experiment.Experiment.tiles = @tiles.Tiles()")
    records = reader.find(experiment.data_dir, "train", experiment.dataset)
    slow, waiting = request.getfixturevalue("slow_user")  # after the schema was read
    if kind == "labels":
        list(map(slow(), evaluate._labels(experiment, records)))
    elif kind == "images":
        list(map(slow(), evaluation_images(records)))
    elif kind == "baseline":
        monkeypatch.setattr(baseline, "ground_truth", slow(baseline.ground_truth))
        evaluate._show_baseline(experiment, records, {}, str(tmp_path))
    else:
        monkeypatch.setattr(segment_counts, "_count_crop", slow(segment_counts._count_crop))
        path = types.SimpleNamespace(num_clusters=16)
        model = types.SimpleNamespace(output_stride=4, cluster_path=path)
        segment_counts.of_experiment(records, experiment, model)
    assert len(waiting) >= 6 and max(waiting) <= 1


def test_a_checkpoint_that_cannot_be_read_now_is_tried_again(tmp_path, monkeypatch, capsys):
    model, found = tf.Module(), []
    model.weight = tf.Variable(0.0)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt-1"))
    monkeypatch.setattr(evaluate.watch, "SECONDS", 0.0)
    load = tf.train.load_checkpoint

    def away_at_first(path):
        found.append(path)
        if len(found) < 3:
            raise tf.errors.UnavailableError(None, None, "no network")
        return load(path)

    monkeypatch.setattr(tf.train, "load_checkpoint", away_at_first)
    restore = evaluate._restore, model, path, None
    with pytest.raises(checkpoint.NotAtHand, match="ckpt-1: cannot be read now .no network"):
        evaluate._patiently(0, path, *restore)
    assert evaluate._patiently(60, path, *restore) == checkpoint.fingerprint(path)
    assert len(found) == 3 and capsys.readouterr().out.count("cannot be read now (no network)") == 1


def test_figures_that_cannot_be_written_now_are_written_later(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.watch, "SECONDS", 0.0)
    rename, failed = tf.io.gfile.rename, []

    def away_at_first(source, target, overwrite):
        if len(failed) < 2:
            failed.append(target)
            raise tf.errors.UnavailableError(None, None, "no network")
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", away_at_first)
    write = functools.partial(evaluate.write_atomic, str(tmp_path / "figures"), "1")
    with pytest.raises(checkpoint.NotAtHand, match="figures: cannot be written .no network"):
        write()
    evaluate._patiently(60, "figures", write)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
    assert capsys.readouterr().out.count("cannot be written (no network)") == 1


def test_a_storage_that_does_not_answer_removes_no_figures(tmp_path, monkeypatch):
    """The checkpoint of step 3 is the newest, and its figures are the best so far."""
    run_dir, saver = str(tmp_path), tf.train.Checkpoint(step=tf.Variable(0))
    for step in (2, 3):
        checkpoint.save(saver, run_dir, step=step, keep=2)
    of = checkpoint.fingerprint(checkpoint.newest(run_dir))
    for step, digest in ((1, "of step 1"), (3, of)):
        content = json.dumps({"step": step, "checkpoint": digest, "records": "r"})
        evaluate.write_atomic(layout.metrics(run_dir, step), content)
    read = checkpoint.read_bytes

    def away(path):
        if "ckpt-3.index" in path:
            raise checkpoint.NotAtHand("no network")
        return read(path)

    monkeypatch.setattr(checkpoint, "read_bytes", away)
    with pytest.raises(checkpoint.NotAtHand):
        evaluate._forget_other_training(run_dir, "r")
    assert len(layout.all_metrics(run_dir)) == 2


@pytest.mark.slow
def test_a_training_begun_again_is_evaluated_again(tiny, tmp_path, monkeypatch):
    def make_folder(experiment, model, folder, facts):  # a whole export takes long
        tf.io.gfile.makedirs(folder)

    monkeypatch.setattr(evaluate.best_checkpoint.saved_model, "export", make_folder)
    experiment = dataclasses.replace(tiny("experiment.Experiment.steps = 2"), model=Stub)
    run_dir, model = str(tmp_path / "run"), experiment.build_evaluation_model()
    saver = tf.train.Checkpoint(model=model)
    for weight in (1.0, 2.0):
        model.step.assign(weight)
        checkpoint.save(saver, run_dir, step=2, keep=1)
        metrics = evaluate.evaluate_run(experiment, run_dir)
        of = checkpoint.fingerprint(checkpoint.newest(run_dir))
        assert metrics["checkpoint"] == of
        best = json.loads((tmp_path / "run/best/export/best.json").read_text())
        assert best == {"step": 2} | {k: metrics[k] for k in ("PQ", "checkpoint", "records")}
        assert evaluate.evaluate_run(experiment, run_dir) is None


def test_records_that_are_lost_are_missed(tiny, records, tmp_path):
    """A file that ends between two records, or is empty, reads as one without the others."""
    shutil.copytree(records, tmp_path / "records")
    experiment = tiny(f'experiment.Experiment.data_dir = "{tmp_path}/records"')
    sorted((tmp_path / "records").glob("val-*"))[-1].write_bytes(b"")
    with pytest.raises(InputError, match="split 'val' does not hold as many records as dataset"):
        evaluate.evaluate(experiment, perfect_predictor(tiny()), step=1)


def test_a_corrupt_record_is_named(tiny, records, tmp_path):
    shutil.copytree(records, tmp_path / "records")
    experiment = tiny(f'experiment.Experiment.data_dir = "{tmp_path}/records"')
    shard = sorted((tmp_path / "records").glob("val-*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(InputError, match="val-00001-of-00002.tfrecord: .*convert again"):
        evaluate.evaluate(experiment, perfect_predictor(tiny()), step=1)
