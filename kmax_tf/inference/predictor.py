"""Predicts panoptic segmentations: of batches on the device, and of a split's records."""

import collections
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf import host
from kmax_tf.data.evaluation_input import evaluation_images, evaluation_input
from kmax_tf.data.records import reader
from kmax_tf.data.transforms.host import to_original_size
from kmax_tf.experiment import Experiment
from kmax_tf.model.kmax import Outputs
from kmax_tf.model.postprocess import Panoptic
from kmax_tf.predict import tiles

MOST_PIXELS = 2**25  # of the images whose predictions wait, if there are several
_MERGING = threading.Lock()  # at the size of an image, logits may have gigabytes


class ImagePrediction(NamedTuple):
    """The prediction of one image at its original size, and the data of its pictures."""

    image_id: str
    name: str  # of the image file
    segment_map: np.ndarray  # int32 [height, width], 0 void, k the k-th segment
    semantic_map: np.ndarray  # integers [height, width], class index, without void
    segment_class: np.ndarray  # int32 [segments], class index, -1 for none
    segment_score: np.ndarray  # float32 [segments]
    canvas: Callable  # () -> uint8 [height, width, 3], the model's input, or an image of tiles
    fitted_size: np.ndarray  # int32 [2], of the canvas without the padding
    assignments: tuple  # int32 [height, width] of each decoder, at its stride; () for tiles
    merged_clusters: tuple = ()  # the `Panoptic` of each assignment, as large; () for tiles


class Clusters(NamedTuple):
    """The clusters of one decoder, at its stride."""

    assignment: tf.Tensor  # int32 [batch, height, width], the pixel's cluster
    merged: Panoptic  # of `PostProcess.merge_assignment`


def build_predictor(model: tf_keras.Model, experiment: Experiment) -> Callable:
    """Compiles a function: image float32 [batch, height, width, 3] -> (`Panoptic`, clusters).

    The clusters are a list, `Clusters` of each decoder. If the experiment merges at the image's
    size, the final `Prediction` stands for the `Panoptic`.
    """

    @tf.function(reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def predict(image):
        outputs = model(image, training=False)
        if experiment.postprocess.at_image_size:
            return outputs.final._replace(pixel_features=()), _clusters(outputs, experiment)
        return experiment.segment(outputs.final), _clusters(outputs, experiment)

    return predict


def _clusters(outputs, experiment):
    """Returns the `Clusters` of each decoder."""
    size, num_things = experiment.evaluation_size, experiment.dataset.num_things
    merge = experiment.postprocess.merge_assignment
    return [
        Clusters(assignment, merge(assignment, decoder.class_logits, size, num_things))
        for assignment, decoder in zip(assignments(outputs), outputs.auxiliary, strict=True)
    ]


def assignments(outputs: Outputs) -> list[tf.Tensor]:
    """Returns each pixel's cluster in every decoder: a list of int32 [batch, height, width]."""
    return [tf.argmax(p.mask_logits, axis=-1, output_type=tf.int32) for p in outputs.auxiliary]


def on_all_replicas(predict: Callable, image: tf.Tensor, batch_size: int) -> list:
    """Calls `predict` on all replicas of the strategy in scope, each with its share of the images.

    Args:
        image: float32 [n, height, width, 3], n at most `batch_size` times the replicas. Fewer
            images are padded, so that the device sees one shape.
        batch_size: images a replica.

    Returns:
        A list with the output of each replica. Image i is row i % batch_size of entry
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
    """Finds the `Records` of the evaluation split; raises InputError as `reader.find` does."""
    return reader.find(experiment.data_dir, experiment.evaluation_split, experiment.dataset)


def predict_split(
    experiment: Experiment, predict: Callable, work: Callable, *extra: Iterable
) -> Iterator:
    """Predicts the evaluation split and yields work(number, `ImagePrediction`, ...) in order.

    Worker threads call `work` while the device predicts the next images. The number of images in
    memory is bounded.

    Args:
        predict: a function of `build_predictor`.
        extra: iterables, each with one more argument of `work` for every image.

    Raises:
        InputError: the records are missing, corrupt, or not as many as they should be.
    """
    replicas, workers = tf.distribute.get_strategy().num_replicas_in_sync, host.cores()
    most = experiment.evaluation_batch_size * replicas + 2 * workers
    arguments = zip(itertools.count(), *extra)
    waiting = collections.deque()  # (pixels, future)

    def finish_and_work(finish, number, *more):
        return work(number, finish(), *more)

    predict_all = _predict_tiles if experiment.tiles else _predict_fitted
    split = f"{experiment.data_dir}: split {experiment.evaluation_split!r}"
    records = evaluation_records(experiment)
    with reader.named_errors(records, split), ThreadPoolExecutor(workers) as pool:
        for pixels, finish in predict_all(experiment, records, predict, pool):
            waiting.append((pixels, pool.submit(finish_and_work, finish, *next(arguments))))
            while len(waiting) > 1 and (
                len(waiting) > most or sum(pixels for pixels, _ in waiting) > MOST_PIXELS
            ):
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()


def _predict_fitted(experiment, records, predict, pool):
    """Yields the pixels of each image, and a function that finishes its `ImagePrediction`."""
    each = experiment.evaluation_batch_size
    together = each * tf.distribute.get_strategy().num_replicas_in_sync
    size, enlarges = experiment.evaluation_size, experiment.enlarges
    for batch in evaluation_input(records, size, together, enlarges):
        outputs = on_all_replicas(predict, batch.image, each)
        # Queued first: the tasks of the images wait for these results.
        outputs = [pool.submit(_to_host, output) for output in outputs]
        for i in range(batch.image.shape[0]):
            place = batch, i, outputs[i // each], i % each
            pixels = math.prod(batch.original_size[i].numpy().tolist())
            yield pixels, functools.partial(_image_prediction, experiment, *place)


def _to_host(output):
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), output)


def _image_prediction(experiment, batch, i, output, row):
    """Returns the prediction of image i of the batch: row `row` of a replica's output."""
    merged, clusters = tf.nest.map_structure(lambda value: value[row], output.result())
    sizes = fitted_size, _ = batch.fitted_size[i].numpy(), batch.original_size[i].numpy()
    with tf.device("/cpu:0"):
        panoptic = _at_original_size(experiment, merged, *sizes)
    return ImagePrediction(
        image_id=batch.image_id[i].numpy().decode(),
        name=batch.filename[i].numpy().decode(),
        segment_map=panoptic.segment_map.numpy(),
        semantic_map=panoptic.semantic_map.numpy(),
        segment_class=np.asarray(panoptic.segment_class),
        segment_score=np.asarray(panoptic.segment_score),
        canvas=lambda: tf.cast(tf.round(batch.image[i]), tf.uint8).numpy(),
        fitted_size=fitted_size,
        assignments=tuple(c.assignment for c in clusters),
        merged_clusters=tuple(c.merged for c in clusters),
    )


def _predict_tiles(experiment, records, predict, pool):
    """Does what `_predict_fitted` does, in tiles."""
    each = experiment.evaluation_batch_size
    together = each * tf.distribute.get_strategy().num_replicas_in_sync
    examples = collections.deque()  # whose tiles are not all predicted

    def images():
        for example in evaluation_images(records):
            examples.append(example)
            yield example.image.numpy()

    def predict_canvases(canvases):
        outputs = on_all_replicas(predict, tf.constant(canvases), each)
        return lambda place: _segmented(outputs[place // each], place % each)

    cut = experiment.evaluation_size, experiment.tiles
    rest = together, experiment.dataset.num_things, pool
    for finish in tiles.segment(images(), predict_canvases, *cut, *rest):
        example = examples.popleft()
        pixels = math.prod(example.image.shape[:2])
        yield pixels, functools.partial(_tiled_prediction, experiment, example, finish)


def _segmented(output, row):
    merged, clusters = tf.nest.map_structure(lambda tensor: tensor[row].numpy(), output)
    names = ("segment_map", "segment_class", "segment_score", "semantic_map")
    own = {name: getattr(merged, name) for name in names}
    return tiles.Segmented(**own, assignments=tuple(c.assignment for c in clusters))


def _tiled_prediction(experiment, example, finish):
    segmented, image = finish(), example.image.numpy()
    size = np.array(image.shape[:2], np.int32)
    scaled, tile = experiment.tiles.scaled_size(size).numpy(), experiment.evaluation_size
    alone = (scaled <= tile).all()  # one tile, whose assignments are of its canvas

    def canvas():
        return np.rint(tiles.cut(image, scaled, (0, 0), tile)).astype(np.uint8) if alone else image

    return ImagePrediction(
        image_id=example.image_id.numpy().decode(),
        name=example.filename.numpy().decode(),
        segment_map=segmented.segment_map,
        semantic_map=segmented.semantic_map,
        segment_class=segmented.segment_class,
        segment_score=segmented.segment_score,
        canvas=canvas,
        fitted_size=scaled if alone else size,
        assignments=segmented.assignments,
    )


def _at_original_size(experiment, merged, fitted_size, original_size):
    """Returns the `Panoptic` of one image at its original size, without a batch axis."""
    if isinstance(merged, Panoptic):
        maps = merged.segment_map, merged.semantic_map
        segment_map, semantic_map = (to_original_size(m, fitted_size, original_size) for m in maps)
        return merged._replace(segment_map=segment_map, semantic_map=semantic_map)
    prediction = tf.nest.map_structure(lambda value: value[None], merged)
    size, num_things = experiment.evaluation_size, experiment.dataset.num_things
    merge = experiment.postprocess.merge_image
    with _MERGING:
        panoptic, _ = merge(prediction, size, fitted_size, original_size, num_things)
    return tf.nest.map_structure(lambda value: value[0], panoptic)
