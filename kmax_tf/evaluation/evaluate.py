"""The evaluator: evaluates the checkpoints of a run, and writes metrics, pictures and a report.

The device predicts images while worker threads evaluate the earlier ones.
"""

import json
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from kmax_tf.data.records import reader
from kmax_tf.errors import InputError, first_line
from kmax_tf.evaluation import baseline, best_checkpoint, bootstrap, clusters, summary
from kmax_tf.evaluation.example_images import EvaluatedImage, ExampleImages
from kmax_tf.evaluation.metrics import Metrics, evaluate_image, ground_truth
from kmax_tf.experiment import Experiment
from kmax_tf.files import UNREACHABLE, NotAtHand, read_bytes, read_json, write_atomic
from kmax_tf.inference import predictor
from kmax_tf.report.quality import baseline_text
from kmax_tf.report.report import write_report
from kmax_tf.run_folder import checkpoint, layout, provenance, results, watch


def evaluate(
    experiment: Experiment, predict: Callable, step: int
) -> tuple[dict, bootstrap.ImageCounts, ExampleImages]:
    """Evaluates a model on the evaluation split of an experiment.

    Args:
        predict: the function from `predictor.build_predictor`.
        step: of the checkpoint, for the metrics.

    Returns:
        The metrics of `summary.summarize`, with "decoders" of `clusters.summarize`; the
        `ImageCounts`; and the `ExampleImages`.

    Raises:
        InputError: the records are missing or corrupt.
    """
    categories = experiment.dataset.categories
    totals, examples, decoders = Metrics(categories), ExampleImages(categories), []
    records = predictor.evaluation_records(experiment)

    def work(number, prediction, label):
        truth = ground_truth(experiment.dataset, label)
        metrics = evaluate_image(categories, truth, prediction)
        image = EvaluatedImage(number, prediction, truth, metrics)
        if number >= clusters.LIMIT:
            return image, None
        return image, clusters.count(categories, truth, prediction, experiment.evaluation_size)

    images = predictor.predict_split(experiment, predict, work, _labels(experiment, records))
    bar = dict(desc=f"evaluating step {step}", unit="image", leave=False, disable=None)
    for image, counts in tqdm(images, total=records.num_examples, **bar):
        totals.add(image.prediction.image_id, image.metrics)
        decoders += [counts] if counts else []
        examples.offer(image)
    metrics = summary.summarize(totals, categories, step)
    metrics["decoders"] = clusters.summarize(decoders, categories)
    return metrics, totals.image_counts(), examples


def _labels(experiment, records):
    """The examples of the records, without their images."""

    @tf.autograph.experimental.do_not_convert
    def label(record):
        return records.parse(record)._replace(image=tf.zeros([0, 0, 3], tf.uint8))

    return reader.decode_each(reader.serialized(records), label, large=experiment.tiles is not None)


def evaluate_run(
    experiment: Experiment,
    run_dir: str,
    *,
    once: bool = False,
    checkpoint_path: str | None = None,
    wait: float = 0.0,
    newest_first: bool = False,
) -> dict | None:
    """Evaluates each checkpoint of a run once, up to the last step, and exports the best one.

    Figures of other settings or records than the run's are printed and not kept.

    Args:
        once: evaluate only `checkpoint_path` or the newest checkpoint, even if it is done already.
        checkpoint_path: the checkpoint to evaluate with `once`. The figures of one that is not in
            RUN_DIR/checkpoints are printed and not kept.
        wait: seconds to wait for a new checkpoint, or for a storage that does not answer; 0
            evaluates only the existing ones.
        newest_first: evaluate the newest checkpoint first, not the earliest.

    Returns:
        The metrics of the last evaluated checkpoint, None if there was none.

    Raises:
        InputError: the records are missing or corrupt. With `once`: the checkpoint is missing,
            corrupt or of another model. Without: settings or records are not the run's.
    """
    records = predictor.evaluation_records(experiment)  # an error here comes before the slow parts
    of_records = provenance.describe_records(experiment.dataset, records)
    fingerprint = of_records["fingerprint"]
    keeps = not _others(run_dir, fingerprint, once)
    model = experiment.build_evaluation_model()
    predict = predictor.build_predictor(model, experiment)
    if once:
        paths = [checkpoint_path or checkpoint.newest(run_dir)]
    else:
        _publish(run_dir)  # an interrupted evaluator may not have done so
        paths = watch.watch_checkpoints(
            run_dir,
            lambda path: checkpoint.read_metrics(run_dir, path) is not None,
            experiment.steps,
            seconds=wait,
            newest_first=newest_first,
        )
    if keeps:
        _show_baseline(experiment, records, of_records, run_dir)
    metrics, seconds = None, 0.0 if once else wait
    for path in paths:
        try:
            of = _patiently(seconds, path, _restore, model, path, experiment.dataset)
        except InputError as error:
            if once:
                raise
            print(f"skipped: {error}", flush=True)
            continue
        # Training may have resumed with other settings.
        why = _patiently(seconds, run_dir, _others, run_dir, fingerprint, once)
        if checkpoint_path and of != _own_fingerprint(run_dir, path):
            why = why or f"{path}: not in {layout.checkpoints(run_dir)}"
        if why:
            print(f"{why}; nothing is saved", flush=True)
        metrics, *rest = evaluate(experiment, predict, checkpoint.step_of(path))
        if not why:
            metrics |= {"checkpoint": of, "records": fingerprint}
            _patiently(seconds, run_dir, _keep, experiment, run_dir, model, metrics, *rest)
        print(summary.line(metrics), flush=True)
    if keeps:
        best_checkpoint.export(run_dir, experiment, model)
    return metrics


def _others(run_dir, records, once):
    """Says what differs from the run's settings, or from the records of its figures; "" if none.

    Raises InputError with that unless `once`: only then figures are printed and not kept.
    """
    names = provenance.other_settings(run_dir)
    other = f"has other values of {', '.join(names)}"
    what = other if names else _other_records(run_dir, records)
    if what and not once:
        raise InputError(f"{run_dir}: {what}; --once prints metrics without saving them")
    return what and f"{run_dir}: {what}"


def _other_records(run_dir, records):
    """Says that the run has figures of other records; "" if it has none."""
    path = layout.baseline(run_dir)
    measured = read_json(path) if tf.io.gfile.exists(path) else {}
    # Figures of older versions do not name their records; the baseline does.
    unnamed = measured.get("dataset", {}).get("fingerprint", records)
    figures = [*results.read_evaluations(run_dir), *best_checkpoint.notes(run_dir)]
    if all(m.get("records", unnamed) == records for m in figures):
        return ""
    places = f"{layout.evaluation(run_dir)} and {layout.best(run_dir)}"
    return f"has metrics of other records (to replace them, move {places} away)"


def _restore(model, path, dataset):
    """Restores a checkpoint, and returns its fingerprint."""
    of = checkpoint.fingerprint(path)  # before reading: a new file is evaluated again
    checkpoint.restore_model(model, path, dataset)
    if of is None:
        raise NotAtHand(f"{path}: cannot be read now; try again")
    return of


def _patiently(seconds: float, what: str, act: Callable, *arguments: Any) -> Any:
    """Returns what `act` returns; if the storage does not answer, it tries again so long."""
    reason = None

    def probe():
        nonlocal reason
        try:
            return (act(*arguments),)
        except UNREACHABLE as error:
            if seconds and not reason:
                print(first_line(error), flush=True)
            reason = error

    done = watch.poll(probe, seconds, what)
    if done is None:
        raise reason
    return done[0]


def _show_baseline(experiment, records, of_records, run_dir):
    """Shows what a prediction without a model achieves; it is measured once for the records."""
    path, of = layout.baseline(run_dir), {"dataset": of_records}
    result = read_json(path) if tf.io.gfile.exists(path) else {}
    if not result.items() >= of.items():
        with reader.named_errors(records, "the evaluation split"):
            tiled = experiment.tiles is not None
            result = baseline.measure(records, experiment.dataset, large=tiled)
        if result is None:
            return
        result |= of
        write_atomic(path, json.dumps(result, indent=1))
    print(baseline_text(result), flush=True)


def _own_fingerprint(run_dir, path):
    """The fingerprint of the run's own checkpoint of the same step, None without one."""
    step = checkpoint.step_of(path)
    return checkpoint.fingerprint(checkpoint.path_of(layout.checkpoints(run_dir), step))


def _keep(experiment, run_dir, model, metrics, image_counts, examples):
    """Writes all that the run folder has of an evaluation, and the weights if they are the best."""
    step = metrics["step"]
    _forget_other_training(run_dir, metrics["records"])
    later = [p for p in layout.all_metrics(run_dir) if p > layout.metrics(run_dir, step)]
    metrics["pictures"] = [] if later else examples.write(layout.pictures(run_dir))
    bootstrap.write(layout.image_counts(run_dir, step), image_counts)
    best_checkpoint.update(run_dir, model, experiment.dataset, metrics)
    summary.write_tensorboard(run_dir, metrics)
    # This file comes last: it marks the checkpoint as done.
    write_atomic(layout.metrics(run_dir, step), json.dumps(metrics, indent=1))
    _publish(run_dir)


def _forget_other_training(run_dir, records):
    """Removes the figures of a training that was in this folder before: it had other checkpoints.

    Figures whose checkpoint is pruned go if all others are of another training. A best checkpoint
    without figures stays if it is of these records: its evaluator was killed before it wrote them.
    """
    paths = {checkpoint.step_of(path): path for path in checkpoint.completed(run_dir)}
    found = {step: checkpoint.fingerprint(path) for step, path in paths.items()}
    present = {step: of for step, of in found.items() if of}  # another may be pruned just now
    evaluated = {m["step"]: m.get("checkpoint") for m in results.read_evaluations(run_dir)}
    named = {step for step, of in evaluated.items() if of}  # older versions did not name it
    known = {step for step in named if step in present or step > max(present, default=step)}
    stale = {step for step in known if evaluated[step] != present.get(step)}
    stale = named if stale == known and stale else stale

    def is_other(note):
        step, of = note["step"], note.get("checkpoint")
        if step in evaluated:
            return step in stale
        return note.get("records") != records or present.get(step, of) != of

    best_checkpoint.forget(run_dir, is_other)
    for step in stale:
        tf.io.gfile.remove(layout.metrics(run_dir, step))
    if stale:
        print(f"{run_dir}: removed metrics of another training ({len(stale)} steps)")


def _publish(run_dir):
    """Writes metrics.json, a copy of the latest step's, metrics.csv and the report."""
    done = layout.all_metrics(run_dir)
    if done:
        write_atomic(layout.latest_metrics(run_dir), read_bytes(done[-1]))
        write_atomic(
            layout.metrics_table(run_dir), summary.table(results.read_evaluations(run_dir))
        )
        write_report(run_dir)
