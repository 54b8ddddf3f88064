"""Export of a trained model as a SavedModel that needs none of this code."""

import json
import os

import tensorflow as tf

from kmax_tf import postprocess
from kmax_tf.data import augment
from kmax_tf.files import write_atomic
from kmax_tf.inference import predictor
from kmax_tf.predict import CATEGORIES


class Segmenter(tf.Module):
    """An image in, its panoptic segmentation out, at the image's own size."""

    def __init__(self, model, experiment):
        super().__init__()
        self.experiment = experiment
        # Not the model itself: saving would trace every one of its layers on its own.
        self.variables_of_model = model.variables
        self.predict = predictor(model, experiment)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8, name="image")])
    def __call__(self, image):
        """uint8 [height, width, 3] -> a dictionary.

        panoptic_map int32 [height, width], 0 void, else the id of a segment;
        segment_id int32 [n], category_id int64 [n], score float32 [n], area int32 [n] in pixels,
        isthing bool [n], one for each segment on the map.
        """
        size = self.experiment.evaluation_size
        shape = tf.shape(image)[:2]
        sample = augment.Sample(tf.cast(image, tf.float32), tf.zeros(shape, tf.int32))
        panoptic, _ = self.predict(augment.fit_and_pad(sample, size).image[None])
        panoptic_map = postprocess.to_original_size(
            panoptic.segment_map[0], augment.fitted_size(sample, size), shape
        )
        classes, scores = panoptic.segment_class[0], panoptic.segment_score[0]
        area = tf.math.bincount(tf.reshape(panoptic_map, [-1]), minlength=classes.shape[0] + 1)[1:]
        row = tf.cast(tf.where(area > 0)[:, 0], tf.int32)
        categories = self.experiment.dataset.categories
        present = tf.gather(classes, row)
        return {
            "panoptic_map": panoptic_map,
            "segment_id": row + 1,
            "category_id": tf.gather(tf.constant([c.id for c in categories], tf.int64), present),
            "score": tf.gather(scores, row),
            "area": tf.gather(area, row),
            "isthing": tf.gather(tf.constant([c.isthing for c in categories]), present),
        }


def export(experiment, model, export_dir):
    """Writes the SavedModel and the names and colours of its categories into `export_dir`.

    An export that is there already is replaced once the new one is whole.
    """
    temporary = export_dir.rstrip("/") + ".unfinished"
    if tf.io.gfile.exists(temporary):
        tf.io.gfile.rmtree(temporary)
    segmenter = Segmenter(model, experiment)
    tf.saved_model.save(segmenter, temporary, signatures=segmenter.__call__)
    categories = [category._asdict() for category in experiment.dataset.categories]
    write_atomic(os.path.join(temporary, CATEGORIES), json.dumps({"categories": categories}))
    if tf.io.gfile.exists(export_dir):
        tf.io.gfile.rmtree(export_dir)
    tf.io.gfile.rename(temporary, export_dir)
