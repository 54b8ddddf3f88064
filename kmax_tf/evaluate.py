"""The evaluator: follows a run's checkpoints; writes panoptic quality, pictures and a report."""

import json
import os
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kmax_tf import checkpoint, postprocess, visualize
from kmax_tf.coco_writer import PanopticWriter
from kmax_tf.data import pipeline, records
from kmax_tf.files import InputError, read_bytes, write_atomic
from kmax_tf.metrics import panoptic_quality
from kmax_tf.report import write_report

FOLDER = "eval"
PICTURES = 6  # images of which overlays are kept


def predictor(model, experiment):
    """A compiled function image [batch, height, width, 3] -> (`Panoptic`, assignments).

    The assignments are those of each decoder in order, int32 [batch, height, width] at its stride.
    """

    @tf.function(reduce_retracing=True)
    def predict(image):
        outputs = model(image, training=False)
        panoptic = experiment.postprocess(
            outputs.final, experiment.evaluation_size, experiment.dataset.num_things
        )
        assignments = [
            tf.argmax(p.mask_logits, axis=-1, output_type=tf.int32) for p in outputs.auxiliary
        ]
        return panoptic, assignments

    return predict


def segments_of(segment_map, segment_class, segment_score, categories):
    """The COCO entries of the segments on one map.

    Arguments: int [height, width]; class index int [n] and score float [n] of segments 1 to n.
    """
    return [
        {
            "id": int(k),
            "category_id": categories[segment_class[k - 1]].id,
            "isthing": int(categories[segment_class[k - 1]].isthing),
            "score": round(float(segment_score[k - 1]), 4),
        }
        for k in np.unique(segment_map)
        if k > 0
    ]


def evaluation_records(experiment):
    return records.find(experiment.data_dir, experiment.evaluation_split, experiment.dataset)


def write_ground_truth(experiment, folder):
    """Writes the labels of the evaluation split in COCO format; returns paths of JSON and PNGs."""
    json_path, png_folder = os.path.join(folder, "truth.json"), os.path.join(folder, "truth")
    writer = PanopticWriter(json_path, png_folder, experiment.dataset.categories)
    found = evaluation_records(experiment)
    for record in records.serialized(found):
        item = found.parse(record)
        ids = item.segment_id.numpy()
        table = np.concatenate([[0], ids])
        segments = [
            {"id": int(i), "category_id": int(c), "iscrowd": int(crowd)}
            for i, c, crowd in zip(
                ids, item.category_id.numpy(), item.is_crowd.numpy(), strict=True
            )
        ]
        writer.add(
            _image_id(item.image_id.numpy()),
            item.filename.numpy().decode(),
            table[item.segment_map.numpy()],
            segments,
        )
    writer.finish()
    return json_path, png_folder


def _image_id(text):
    """COCO's ids are numbers, Cityscapes' are names."""
    text = text.decode()
    return int(text) if text.isdigit() else text


def evaluate(experiment, predict, folder, truth, step):
    """Predicts the evaluation split, and returns the metrics in percent.

    Arguments:
      predict: what `predictor` returns.
      folder: where predictions/ and pictures/ go.
      truth: what `write_ground_truth` returns.
      step: of the checkpoint, noted in the metrics.
    """
    json_path = os.path.join(folder, "predictions.json")
    png_folder = os.path.join(folder, "predictions")
    categories = experiment.dataset.categories
    writer = PanopticWriter(json_path, png_folder, categories)
    found = evaluation_records(experiment)
    batches = pipeline.evaluation_input(
        found.paths, experiment.evaluation_size, experiment.evaluation_batch_size, found.parse
    )
    count = 0
    bar = dict(desc=f"evaluating step {step}", unit="batch", leave=False, disable=None)
    for batch in tqdm(batches, **bar):
        panoptic, assignments = predict(batch.image)
        for i in range(batch.image.shape[0]):
            segment_map = postprocess.to_original_size(
                panoptic.segment_map[i], batch.fitted_size[i], batch.original_size[i]
            ).numpy()
            segments = segments_of(
                segment_map,
                panoptic.segment_class[i].numpy(),
                panoptic.segment_score[i].numpy(),
                categories,
            )
            name = batch.filename[i].numpy().decode()
            writer.add(_image_id(batch.image_id[i].numpy()), name, segment_map, segments)
            if count < PICTURES:
                image = _restored_image(batch, i)
                _write_pictures(folder, name, image, segment_map, segments, categories)
                _write_assignments(folder, name, assignments, i, batch, image)
            count += 1
    writer.finish()
    return _summary(panoptic_quality(*truth, json_path, png_folder), categories, step, count)


def _restored_image(batch, i):
    """The image of a batch without its padding, at its original size, uint8."""
    height, width = batch.fitted_size[i]
    image = tf.image.resize(batch.image[i, :height, :width], batch.original_size[i])
    return tf.cast(tf.round(image), tf.uint8).numpy()


def _picture_folder(folder, name):
    return os.path.join(folder, "pictures", os.path.splitext(os.path.basename(name))[0])


def _write_png(path, image):
    write_atomic(path, tf.io.encode_png(image).numpy())


def _write_pictures(folder, name, image, segment_map, segments, categories):
    by_id = {c.id: c for c in categories}
    labelled = [
        (s["id"], by_id[s["category_id"]].name, by_id[s["category_id"]].color) for s in segments
    ]
    target = _picture_folder(folder, name)
    _write_png(os.path.join(target, "image.png"), image)
    overlay = visualize.overlay(image, segment_map, labelled)
    _write_png(os.path.join(target, "prediction.png"), overlay)


def _write_assignments(folder, name, assignments, i, batch, image):
    """One picture a decoder: which cluster each pixel is assigned to (paper, figure 4)."""
    height, width = batch.image.shape[1:3]
    for number, assignment in enumerate(assignments, start=1):
        canvas = tf.image.resize(assignment[i, :, :, None], [height, width], "nearest")[..., 0]
        canvas = postprocess.to_original_size(canvas, batch.fitted_size[i], batch.original_size[i])
        picture = visualize.assignment_picture(canvas.numpy(), image)
        _write_png(os.path.join(_picture_folder(folder, name), f"assignment_{number}.png"), picture)


def _write_label_pictures(experiment, folder):
    """Overlays of the labels of the images that `evaluate` keeps pictures of."""
    found = evaluation_records(experiment)
    categories = {c.id: c for c in experiment.dataset.categories}
    for _, record in zip(range(PICTURES), records.serialized(found), strict=False):
        item = found.parse(record)
        labelled = [
            (k, categories[c].name + (" (crowd)" if crowd else ""), categories[c].color)
            for k, (c, crowd) in enumerate(
                zip(item.category_id.numpy().tolist(), item.is_crowd.numpy(), strict=True), start=1
            )
        ]
        overlay = visualize.overlay(item.image.numpy(), item.segment_map.numpy(), labelled)
        name = item.filename.numpy().decode()
        _write_png(os.path.join(_picture_folder(folder, name), "label.png"), overlay)


def _summary(quality, categories, step, num_images):
    """The figures of a report from `panoptic_quality`'s fractions."""
    metrics = {"step": step, "num_images": num_images}
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            present = quality[group]["n"] > 0
            metrics[key.upper() + suffix] = 100 * quality[group][key] if present else None
    metrics["classes"] = [
        {"name": c.name, "isthing": c.isthing}
        | {key.upper(): 100 * quality["per_class"][c.id][key] for key in ("pq", "sq", "rq")}
        for c in categories
        if c.id in quality["per_class"]
    ]
    return metrics


def _write_results(run_dir, metrics):
    """metrics.json, the checkpoint's own metrics, TensorBoard and report.html."""
    folder, step = os.path.join(run_dir, FOLDER), metrics["step"]
    text = json.dumps(metrics, indent=1)
    write_atomic(_metrics_path(run_dir, step), text)
    write_atomic(os.path.join(run_dir, "metrics.json"), text)
    summaries = tf.summary.create_file_writer(folder)
    with summaries.as_default(step):
        for key, value in metrics.items():
            if isinstance(value, float):
                tf.summary.scalar(key, value)
        for path in sorted(tf.io.gfile.glob(os.path.join(folder, "pictures", "*", "pred*.png")))[
            :4
        ]:
            picture = tf.io.decode_png(read_bytes(path), channels=3)
            tf.summary.image(os.path.basename(os.path.dirname(path)), picture[None])
    summaries.close()
    write_report(run_dir)


def wait_for_config(run_dir, seconds):
    """The path of the run's config.gin, once training has written it.

    Raises InputError if it is not there after `seconds`.
    """
    path = os.path.join(run_dir, "config.gin")
    deadline = time.monotonic() + seconds
    while not tf.io.gfile.exists(path):
        if time.monotonic() > deadline:
            raise InputError(f"{path}: missing; start scripts/train.py with this run_dir")
        time.sleep(1.0)
    return path


def evaluate_run(experiment, run_dir, *, checkpoint_path=None, wait=0.0):
    """Evaluates the checkpoints of a run, each once and in order, until the last step's.

    Arguments:
      checkpoint_path: evaluate this one alone.
      wait: seconds to wait for a new checkpoint before giving up; 0 takes what is there.
    Returns the metrics of the last checkpoint that it evaluated, None if there was none.
    Raises InputError for missing records or a checkpoint of another model.
    """
    folder = os.path.join(run_dir, FOLDER)
    truth = write_ground_truth(experiment, folder)
    _write_label_pictures(experiment, folder)
    model = experiment.build_evaluation_model()
    predict = predictor(model, experiment)
    metrics = None
    for path in [checkpoint_path] if checkpoint_path else _follow(run_dir, experiment.steps, wait):
        step = checkpoint.step_of(path)
        try:
            checkpoint.restore_model(model, path)
        except InputError as error:
            if checkpoint_path:
                raise
            print(f"skipped: {error}", flush=True)
            continue
        metrics = evaluate(experiment, predict, folder, truth, step)
        _write_results(run_dir, metrics)
        print(
            f"step {step}: PQ {metrics['PQ']:.1f}  things {metrics['PQ_things'] or 0:.1f}"
            f"  stuff {metrics['PQ_stuff'] or 0:.1f}  ({metrics['num_images']} images)",
            flush=True,
        )
    return metrics


def _follow(run_dir, last_step, wait):
    """Yields each checkpoint of the run that has no metrics yet, once, until the last step's."""
    seen = set()
    deadline = time.monotonic() + wait
    while True:
        fresh = [
            path
            for path in checkpoint.completed(run_dir)
            if path not in seen and not _is_done(run_dir, checkpoint.step_of(path))
        ]
        if fresh:
            seen.add(fresh[0])
            yield fresh[0]
            deadline = time.monotonic() + wait
        elif _is_done(run_dir, last_step) or time.monotonic() > deadline:
            return
        else:
            time.sleep(1.0)


def _metrics_path(run_dir, step):
    return os.path.join(run_dir, FOLDER, f"metrics-{step:08d}.json")


def _is_done(run_dir, step):
    return tf.io.gfile.exists(_metrics_path(run_dir, step))
