"""The evaluator: follows a run's checkpoints; writes PQ, AP, mIoU, pictures and a report.

The device predicts while worker threads measure the images before; both stream.
"""

import json
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kmax_tf import visualize
from kmax_tf.data.records import reader
from kmax_tf.errors import InputError
from kmax_tf.evaluation import best_checkpoint, bootstrap
from kmax_tf.evaluation.example_images import EvaluatedImage, ExampleImages
from kmax_tf.evaluation.metrics import GroundTruth, Metrics, evaluate_image
from kmax_tf.experiment import Experiment
from kmax_tf.files import read_bytes, read_json, write_atomic
from kmax_tf.inference import predictor
from kmax_tf.report.report import write_report
from kmax_tf.run_folder import checkpoint, layout, watch

THUMBNAIL = 384  # pixels of the longer side of a picture in TensorBoard, which keeps all of them


def evaluate(
    experiment: Experiment, predict: Callable, step: int
) -> tuple[dict, bootstrap.Statistics, ExampleImages]:
    """Predicts the evaluation split of an experiment.

    Arguments:
      predict: what `predictor` returns.
      step: of the checkpoint, noted in the metrics.
    Returns the metrics in percent (a dict that JSON takes), `Statistics` and the `ExampleImages`.
    """
    categories = experiment.dataset.categories
    metrics, gallery = Metrics(categories), ExampleImages(categories)
    records = predictor.evaluation_records(experiment)

    def score(number, segmented, label):
        truth = _truth(experiment.dataset, label)
        return EvaluatedImage(
            number, segmented, truth, evaluate_image(categories, truth, segmented)
        )

    scored_images = predictor.predict_split(experiment, predict, score, _labels(records))
    bar = dict(desc=f"evaluating step {step}", unit="image", leave=False, disable=None)
    try:
        for scored in tqdm(scored_images, **bar):
            metrics.add(scored.segmented.image_id, scored.measured)
            gallery.offer(scored)
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
        reader.check(records)
        raise
    return _summary(metrics, categories, step), metrics.statistics(), gallery


def _labels(records):
    """The examples without their images."""

    def label(record):
        return records.parse(record)._replace(image=tf.zeros([0, 0, 3], tf.uint8))

    labels = tf.data.TFRecordDataset(records.paths).map(label, tf.data.AUTOTUNE, deterministic=True)
    return labels.prefetch(tf.data.AUTOTUNE)


def _truth(dataset, label):
    classes = [dataset.class_of_category[c] for c in label.category_id.numpy().tolist()]
    return GroundTruth(
        label.segment_map.numpy(), np.array(classes, np.int32), label.is_crowd.numpy()
    )


def _summary(metrics, categories, step):
    """The figures of a report, in percent; None where there is nothing to measure."""
    quality, precision, iou = metrics.quality(), metrics.average_precision(), metrics.mean_iou()
    summary = {"step": step, "num_images": len(metrics.statistics().image_id)}
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            present = quality[group]["n"] > 0
            summary[key.upper() + suffix] = 100 * quality[group][key] if present else None
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        summary[name] = _percent(precision[name])
    summary["mIoU"] = _percent(iou["mIoU"])
    summary["classes"] = [
        {"name": c.name, "isthing": c.isthing}
        | {key.upper(): 100 * quality["per_class"][c.id][key] for key in ("pq", "sq", "rq")}
        | {key: quality["per_class"][c.id][key] for key in ("tp", "fp", "fn")}
        | {"AP": _percent(precision["per_class"].get(c.id))}
        | {"IoU": _percent(iou["per_class"][c.id])}
        for c in categories
        if c.id in quality["per_class"]
    ]
    summary["confusion"] = _confusion(metrics.confusion(), [c.name for c in categories])
    return summary


def _percent(fraction):
    return None if fraction is None else 100 * fraction


def _confusion(confusion, names, most=12):
    """The mistakes that cost most pixels: [{"true", "predicted", "share": % of the true class}]."""
    mistakes = np.where(np.eye(len(names), dtype=bool), 0, confusion)
    total = confusion.sum(1)
    worst = np.argsort(-mistakes.ravel().astype(np.int64), kind="stable")[:most]
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "share": 100 * float(mistakes[true, predicted] / total[true]),
        }
        for true, predicted in zip(*np.unravel_index(worst, mistakes.shape), strict=True)
        if mistakes[true, predicted]
    ]


def evaluate_run(
    experiment: Experiment,
    run_dir: str,
    *,
    once: bool = False,
    checkpoint_path: str | None = None,
    wait: float = 0.0,
    newest_first: bool = False,
    export_best: bool = True,
) -> dict | None:
    """Evaluates the checkpoints of a run, each once, until the last step's; exports the best.

    Arguments:
      once: evaluate `checkpoint_path`, or the newest checkpoint, and no other, done or not.
      wait: seconds to wait for a new checkpoint before giving up; 0 takes what is there.
      newest_first: in place of the order of the steps.
    Returns the metrics of the last checkpoint that it evaluated, None if there was none.
    Raises InputError for missing records or a checkpoint of another model.
    """
    predictor.evaluation_records(experiment)  # before anything that takes long
    model = experiment.build_evaluation_model()
    predict = predictor.build_predictor(model, experiment)
    if once:
        paths = [checkpoint_path or checkpoint.newest(run_dir)]
    else:
        _publish(run_dir)  # in case that an earlier evaluator was cut off
        paths = watch.checkpoints(
            run_dir,
            lambda step: tf.io.gfile.exists(layout.metrics(run_dir, step)),
            experiment.steps,
            seconds=wait,
            newest_first=newest_first,
        )
    metrics = None
    for path in paths:
        try:
            checkpoint.restore_model(model, path)
        except InputError as error:
            if once:
                raise
            print(f"skipped: {error}", flush=True)
            continue
        metrics = _evaluate_checkpoint(experiment, run_dir, model, predict, path)
    if export_best:
        best_checkpoint.export(run_dir, experiment, model)
    return metrics


def _evaluate_checkpoint(experiment, run_dir, model, predict, path):
    step = checkpoint.step_of(path)
    metrics, image_statistics, gallery = evaluate(experiment, predict, step)
    later = [p for p in layout.all_metrics(run_dir) if p > layout.metrics(run_dir, step)]
    metrics["pictures"] = [] if later else gallery.write(layout.pictures(run_dir))
    bootstrap.write(layout.statistics(run_dir, step), image_statistics)
    best_checkpoint.keep(run_dir, model, metrics)
    _write_summaries(run_dir, metrics)
    # From here on the checkpoint is done.
    write_atomic(layout.metrics(run_dir, step), json.dumps(metrics, indent=1))
    _publish(run_dir)
    print(
        f"step {step}: PQ {metrics['PQ'] or 0:.1f}  things {metrics['PQ_things'] or 0:.1f}"
        f"  stuff {metrics['PQ_stuff'] or 0:.1f}  AP {metrics['AP'] or 0:.1f}"
        f"  mIoU {metrics['mIoU'] or 0:.1f}  ({metrics['num_images']} images)",
        flush=True,
    )
    return metrics


def _write_summaries(run_dir, metrics):
    """For TensorBoard: the figures; of the first images prediction and clusters, by kind."""
    summaries = tf.summary.create_file_writer(layout.evaluation(run_dir))
    with summaries.as_default(metrics["step"]):
        for key, value in metrics.items():
            if isinstance(value, float):
                tf.summary.scalar(key, value)
        for picture in (p for p in metrics["pictures"] if p["role"] == "first"):
            name = picture["folder"]
            for kind, path in _changing(os.path.join(layout.pictures(run_dir), name)):
                image = visualize.decode(read_bytes(path), THUMBNAIL)
                tf.summary.image(f"{kind}/{name}", image[None])
    summaries.close()


def _changing(folder):
    """The pictures of an image that are not the same at every step: (kind, path)."""
    paths = tf.io.gfile.glob(os.path.join(folder, "*.webp"))
    kinds = [(os.path.splitext(os.path.basename(path))[0], path) for path in paths]
    return [entry for entry in kinds if entry[0] not in ("image", "label")]


def _publish(run_dir):
    """metrics.json, those of the latest step, and the report, from what is in the folder."""
    done = layout.all_metrics(run_dir)
    if done:
        write_atomic(layout.latest_metrics(run_dir), read_bytes(done[-1]))
        write_report(run_dir)


def facts(run_dir: str, path: str) -> list[tuple[str, str]]:
    """What a model card says of the weights of a checkpoint: its name and what it was scored."""
    found = [("weights", "/".join(path.split("/")[-2:]))]
    scored = layout.metrics(run_dir, checkpoint.step_of(path))
    if tf.io.gfile.exists(scored):
        metrics = read_json(scored)
        names = ("PQ", "PQ_things", "PQ_stuff", "AP", "mIoU")
        figures = ", ".join(f"{n} {metrics[n]:.1f}" for n in names if metrics[n] is not None)
        found.append(("scored", f"{figures} on {metrics['num_images']} images"))
    return found
