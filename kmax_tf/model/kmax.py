"""The whole model on one page: kMaX-DeepLab (arXiv 2207.04044, figure 2)."""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from kmax_tf.errors import InputError, nearest
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.model.layers.axial_attention import AxialAttention
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.model.layers.recompute import recomputed

PARTS = ("pixel_encoder", "pixel_decoder", "semantic_branch")  # that can be recomputed


class Outputs(NamedTuple):
    """The model's predictions for a batch of images, float32."""

    final: Prediction  # at the output stride
    auxiliary: tuple[Prediction, ...]  # of each supervised decoder, at its own stride
    semantic_logits: tf.Tensor  # [batch, height, width, channels]


class KMaX(tf_keras.Model):
    """Pixel encoder, pixel decoder, cluster path, and the auxiliary semantic branch.

    Args:
        num_classes: things and stuff together, without void.
        pixel_encoder: maps images [batch, height, width, 3] in [-1, 1] to endpoints, fine to
            coarse, the last at its `stride`. With `recompute=True`, it recomputes its stages.
        pixel_decoder: maps endpoints to feature maps, coarse to fine; the last is the output.
        cluster_path: makes, from `num_classes`, the layer that maps feature maps to the final
            `Prediction` and those of its decoders.
        semantic_branch: makes, from `num_classes`, the layer that maps endpoints to semantic
            logits.
        batch_norm_momentum: of all moving statistics; short trainings need less than 0.99.
        recompute: names of `PARTS` that a training step computes a second time for the gradient,
            instead of keeping their values. It needs less memory and more time, and computes the
            same. Of the pixel encoder, it computes the stages again. With any part, axial attention
            keeps no logits.
    """

    def __init__(
        self,
        num_classes: int,
        pixel_encoder: tf_keras.layers.Layer,
        pixel_decoder: tf_keras.layers.Layer,
        cluster_path: Callable,
        semantic_branch: Callable,
        batch_norm_momentum: float = 0.99,
        recompute: Sequence[str] = (),
    ):
        super().__init__(autocast=False)  # an image is normalized before it loses precision
        self.pixel_encoder = pixel_encoder
        self.pixel_decoder = pixel_decoder
        self.cluster_path = cluster_path(num_classes)
        self.semantic_branch = semantic_branch(num_classes)
        self.batch_norm_momentum = batch_norm_momentum
        for name in recompute:
            if name not in PARTS:
                raise InputError(f"KMaX.recompute: no part {name!r}{nearest(name, PARTS)}")
        if "pixel_encoder" in recompute and (
            "recompute" not in inspect.signature(pixel_encoder.call).parameters
        ):
            raise InputError(
                f"KMaX.recompute: {type(pixel_encoder).__name__}.call has no argument 'recompute',"
                " which recomputes its stages; add it, or leave 'pixel_encoder' out"
            )
        if "pixel_decoder" in recompute and self.cluster_path.dual_path:
            raise InputError(
                "KMaX.recompute: a dual path runs the pixel decoder between its decoders; leave"
                " 'pixel_decoder' out"
            )
        self.recompute = tuple(recompute)

    def call(self, image: tf.Tensor, training: bool | None = None) -> Outputs:
        """Predicts from images, uint8 or float [batch, height, width, 3], 0 to 255.

        Height and width are a multiple of the pixel encoder's stride plus one; the padding is gray
        (127.5).
        """
        x = tf.cast(tf.cast(image, tf.float32) / 127.5 - 1.0, self.compute_dtype)

        again = self.recompute if training else ()

        def part(name, inputs):
            layer = getattr(self, name)
            return recomputed(layer, inputs) if name in again else layer(inputs)

        options = {"recompute": True} if "pixel_encoder" in again else {}
        endpoints = self.pixel_encoder(x, **options)
        if self.cluster_path.dual_path:  # the decoders update the pixel decoder's input
            final, auxiliary = self.cluster_path(endpoints, self.pixel_decoder)
        else:
            final, auxiliary = self.cluster_path(part("pixel_decoder", endpoints))
        return Outputs(final, tuple(auxiliary), part("semantic_branch", endpoints))

    def create_variables(self, height: int, width: int) -> "KMaX":
        """Builds every layer, and returns the model.

        Sets `output_stride`, the stride of the final masks in pixels, and `num_predictions`, the
        number of final and auxiliary ones.

        Args:
            height, width: size of the images in pixels.

        Raises:
            InputError: the size does not fit the strides, or semantic logits are finer than masks.
        """
        self.check_size(height, width)
        # Weights and strides do not depend on the size, and a small image is quicker.
        small = 2 * self.pixel_encoder.stride + 1
        outputs = self(tf.zeros([1, small, small, 3], tf.uint8))
        masks, semantic = outputs.final.mask_logits, outputs.semantic_logits
        if semantic.shape[1] > masks.shape[1]:
            raise InputError(
                "semantic_branch.SemanticBranch.low_level ends at a finer stride than the masks;"
                " bind fewer stages"
            )
        self.output_stride = (small - 1) // (masks.shape[1] - 1)
        self.num_predictions = 1 + len(outputs.auxiliary)
        for layer in self.submodules:
            if isinstance(layer, BatchNorm):
                layer.momentum = self.batch_norm_momentum
            if isinstance(layer, AxialAttention):
                layer.keep_logits = not self.recompute
        return self

    def check_size(self, height: int, width: int) -> None:
        """Raises InputError if the size of images, in pixels, does not fit the strides."""
        stride = self.pixel_encoder.stride
        if (height - 1) % stride or (width - 1) % stride:
            raise InputError(
                f"image size {height} x {width}: height and width must be a multiple of {stride}"
                f" plus one, such as {', '.join(str(stride * n + 1) for n in (2, 3, 12, 40))}"
            )
