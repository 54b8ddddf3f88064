"""Images -> panoptic segmentations on the device: what evaluation and export share."""

import tensorflow as tf


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


def on_all_replicas(predict, image, batch_size):
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
