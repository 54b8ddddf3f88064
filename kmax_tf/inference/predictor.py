"""Images -> panoptic segmentations: on the device, and streamed from the records of a split."""

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf.data.evaluation_input import evaluation_input
from kmax_tf.data.records import reader
from kmax_tf.experiment import Experiment
from kmax_tf.model import postprocess
from kmax_tf.model.kmax import Outputs


class ImagePrediction(NamedTuple):
    """The prediction of one image at its original size, and what its pictures need."""

    image_id: str
    name: str  # of the image file
    segment_map: np.ndarray  # int32 [height, width], 0 void, k the k-th segment
    semantic_map: np.ndarray  # int32 [height, width], class index, without void
    segment_class: np.ndarray  # int32 [segments], class index, -1 where there is none
    segment_score: np.ndarray  # float32 [segments]
    canvas: Callable  # () -> uint8 [height, width, 3], the image fitted and padded
    fitted_size: np.ndarray  # int32 [2], without the padding
    assignments: tuple  # of every decoder in order, int32 [height, width] at its stride


def build_predictor(model: tf_keras.Model, experiment: Experiment) -> Callable:
    """A compiled function image [batch, height, width, 3] -> (`Panoptic`, assignments).

    The assignments are those of each decoder in order, int32 [batch, height, width] at its stride.
    """

    @tf.function(reduce_retracing=True)
    def predict(image):
        outputs = model(image, training=False)
        panoptic = experiment.postprocess(
            outputs.final, experiment.evaluation_size, experiment.dataset.num_things
        )
        return panoptic, assignments(outputs)

    return predict


def assignments(outputs: Outputs) -> list[tf.Tensor]:
    """Each pixel's cluster in every decoder: a list of int32 [batch, height, width]."""
    return [tf.argmax(p.mask_logits, axis=-1, output_type=tf.int32) for p in outputs.auxiliary]


def on_all_replicas(predict: Callable, image: tf.Tensor, batch_size: int) -> list:
    """Calls `predict` with the images dealt out to the replicas of the strategy in scope.

    Arguments:
      image: float32 [n, height, width, 3], n at most `batch_size` times the replicas. Fewer are
        filled up, so that the device sees one shape.
      batch_size: images a replica.
    Returns a list with what predict gives on each replica; image i is row i % batch_size of entry
    i // batch_size.
    """
    strategy = tf.distribute.get_strategy()
    missing = batch_size * strategy.num_replicas_in_sync - image.shape[0]
    image = tf.pad(image, [[0, missing], [0, 0], [0, 0], [0, 0]])
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: image[context.replica_id_in_sync_group * batch_size :][:batch_size]
    )
    outputs = strategy.run(predict, args=(shares,))
    each = [strategy.experimental_local_results(tensor) for tensor in tf.nest.flatten(outputs)]
    return [tf.nest.pack_sequence_as(outputs, tensors) for tensors in zip(*each, strict=True)]


def evaluation_records(experiment: Experiment) -> reader.Records:
    """The `Records` of the evaluation split; InputError as of `reader.find`."""
    return reader.find(experiment.data_dir, experiment.evaluation_split, experiment.dataset)


def predict_split(
    experiment: Experiment, predict: Callable, work: Callable, *extra: Iterable
) -> Iterator:
    """Predicts the evaluation split and yields work(number, `ImagePrediction`, ...) in order.

    Worker threads call `work`, while the device predicts what comes after; a batch and a bit of
    images are under way, however many there are.

    Arguments:
      predict: what `build_predictor` returns.
      extra: iterables with one more argument of `work` for each image.
    """
    records = evaluation_records(experiment)
    each, workers = experiment.evaluation_batch_size, os.cpu_count()
    together = each * tf.distribute.get_strategy().num_replicas_in_sync
    arguments = zip(itertools.count(), *extra)
    waiting = collections.deque()

    def segment_and_work(batch, i, output, row, number, *more):
        return work(number, _segmented(batch, i, output.result(), row), *more)

    with ThreadPoolExecutor(workers) as pool:
        for batch in evaluation_input(records, experiment.evaluation_size, together):
            outputs = on_all_replicas(predict, batch.image, each)
            # First in the queue, so that those who wait for it do not wait in its way.
            outputs = [pool.submit(_to_host, output) for output in outputs]
            for i in range(batch.image.shape[0]):
                place = batch, i, outputs[i // each], i % each
                waiting.append(pool.submit(segment_and_work, *place, *next(arguments)))
            while len(waiting) > together + 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _to_host(output):
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), output)


def _segmented(batch, i, output, row):
    """Image i of the batch, whose prediction is row `row` of what a replica gave."""
    panoptic, assignments = output
    fitted_size = batch.fitted_size[i].numpy()
    with tf.device("/cpu:0"):
        segment_map, semantic_map = (
            postprocess.to_original_size(values[row], fitted_size, batch.original_size[i]).numpy()
            for values in (panoptic.segment_map, panoptic.semantic_map)
        )
    return ImagePrediction(
        image_id=batch.image_id[i].numpy().decode(),
        name=batch.filename[i].numpy().decode(),
        segment_map=segment_map,
        semantic_map=semantic_map,
        segment_class=panoptic.segment_class[row],
        segment_score=panoptic.segment_score[row],
        canvas=lambda: tf.cast(tf.round(batch.image[i]), tf.uint8).numpy(),
        fitted_size=fitted_size,
        assignments=tuple(assignment[row] for assignment in assignments),
    )
