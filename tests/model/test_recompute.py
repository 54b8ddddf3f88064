"""A training step that recomputes parts of the model is the step that keeps their values."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.autograph.impl.api import do_not_convert

from kmax_tf import runtime
from kmax_tf.errors import InputError
from kmax_tf.model.convnext import ConvNeXt
from kmax_tf.model.efficientnet_lite import EfficientNetLite
from kmax_tf.model.kmax import PARTS, KMaX
from kmax_tf.model.layers.conv import ConvBN
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.model.layers.recompute import SECOND_PASS, recomputed
from kmax_tf.model.layers.stateless_random import DropPath, random_seed, random_uniform
from kmax_tf.model.resnet import ResNet

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 33, 49, 3)).astype(np.float32)


def build(tiny, parts, *bindings):
    """The toy model with chance in each part: drop path, drop query, dropout."""
    experiment = tiny(
        f"kmax.KMaX.recompute = {list(parts)}",
        "resnet.ResNet.axial_from = 4",
        "resnet.ResNet.axial_keep_prob = 0.6",
        "kmax_decoder.ClusterPath.drop_query = True",
        "kmax_decoder.ClusterPath.num_clusters = 32",
        "semantic_branch.SemanticBranch.dropout = 0.3",
        *bindings,
    )
    runtime.set_seed(0)
    model = experiment.build_model()
    for layer in model.submodules:
        if isinstance(layer, BatchNorm):  # where gamma is 0, nothing reaches the layers before
            layer.gamma.assign_add(tf.fill(layer.gamma.shape, 0.5))
    return model


def one_pass(model, images):
    """Gradients, outputs, and the next random numbers."""
    with tf.GradientTape() as tape, random_seed(tf.constant([3, 4])):
        outputs = model(images, training=True)
        predictions = (outputs.final, *outputs.auxiliary)
        tensors = [t for p in predictions for t in p if t is not None]
        tensors.append(outputs.semantic_logits)
        loss = tf.add_n([tf.reduce_sum(t * tf.sin(3 * t)) for t in tensors])
        drawn = random_uniform([3])
    gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
    return [tf.convert_to_tensor(t) for t in [*gradients, *tensors, drawn]]


def step(model, compiled=False):
    """The arrays of `one_pass`, and the statistics that it moved."""
    run = tf.function(do_not_convert(lambda: one_pass(model, IMAGES)), jit_compile=compiled)
    return [t.numpy() for t in run()], [v.numpy() for v in model.non_trainable_variables]


def assert_same(kept, again):
    """`kept` and `again` are the arrays of a pass, and the statistics."""
    largest = max(np.abs(a).max() for a in kept[0])  # some gradients are 0, but for rounding
    for a, b in zip(kept[0], again[0], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max() + 1e-6 * largest)
    for a, b in zip(kept[1], again[1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


def convolutions(layer):
    """How many convolutions a layer holds."""
    kinds = (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D)
    return sum(isinstance(part, kinds) for part in layer.submodules)


class Trains(tf_keras.layers.Layer):
    """Calls a function in training mode, as a model does."""

    def call(self, function, inputs, training):
        return function(inputs)


class Part(tf_keras.layers.Layer):
    """Two feature maps of a list of two, with batch norm and chance."""

    def __init__(self):
        super().__init__()
        self.first, self.second = ConvBN(4, 3, activation="gelu"), ConvBN(4, 3)
        self.drop_path = DropPath(0.5)

    def call(self, inputs):
        x, y = inputs
        x = self.first(x)
        return [x, x + self.drop_path(self.second(y))]


def test_a_part_is_computed_twice_and_the_same():
    x, y = (tf.constant(IMAGES[..., :2] / 255 + shift) for shift in (0.0, 0.5))
    runtime.set_seed(0)
    part = Part()
    part([x, y])  # makes the variables
    start, results = part.get_weights(), []
    for call in (part, functools.partial(recomputed, part)):
        part.set_weights(start)

        @tf.function
        @do_not_convert
        def step(call=call):
            with tf.GradientTape() as tape, random_seed(tf.constant([3, 4])):
                tape.watch([x, y])
                outputs = Trains()(call, [x, y], training=True)
                loss = tf.add_n([tf.reduce_sum(tf.sin(output)) for output in outputs])
                drawn = random_uniform([3])
            return tape.gradient(loss, [x, y, *part.trainable_variables]), outputs, drawn

        arrays = [t.numpy() for t in tf.nest.flatten(step())]
        operations = step.get_concrete_function().graph.get_operations()
        convolutions = sum(operation.type == "Conv2D" for operation in operations)
        results.append((arrays, part.get_weights(), convolutions))
    (*kept, once), (*again, twice) = results
    assert_same(kept, again)
    assert any((a != b).any() for a, b in zip(start, kept[1]))  # the statistics moved
    assert (once, twice) == (2, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet(stem=((3, 2, 4), (3, 1, 4)), widths=(4, 8), depths=(2, 1)),
        lambda: ConvNeXt(widths=(4, 8), depths=(1, 2), drop_path_keep_prob=0.5),
        lambda: EfficientNetLite(width=0.3, depth=0.3),
    ],
    ids=["resnet", "convnext", "lite"],
)
def test_an_encoder_recomputes_its_stages(make):
    runtime.set_seed(0)
    encoder, results, generator = make(), [], np.random.default_rng(0)
    encoder(IMAGES / 255)  # makes the variables
    # No factor is 0, or gradients would be.
    start = [w + generator.uniform(0.1, 0.5, w.shape) for w in encoder.get_weights()]
    blocks = tf.nest.flatten(encoder.blocks if hasattr(encoder, "blocks") else encoder.stages)
    for options in ({}, {"recompute": True}):
        encoder.set_weights(start)

        @tf.function
        @do_not_convert
        def step(options=options):
            with tf.GradientTape() as tape, random_seed(tf.constant([5, 6])):
                endpoints = encoder(IMAGES / 255, training=True, **options)
                loss = tf.add_n([tf.reduce_sum(tf.sin(endpoint)) for endpoint in endpoints])
            return tape.gradient(loss, encoder.trainable_variables), endpoints

        operations = step.get_concrete_function().graph.get_operations()
        kinds = ("Conv2D", "DepthwiseConv2dNative")
        paths = [o.name for o in operations if o.type in kinds and "gradient_tape" not in o.name]
        arrays = [t.numpy() for t in tf.nest.flatten(step())]
        in_second = sum(SECOND_PASS in path for path in paths)
        results.append((arrays, encoder.get_weights(), in_second))
    (*kept, none), (*again, number) = results
    assert_same(kept, again)
    assert all(np.any(gradient) for gradient in kept[0])
    assert (none, number) == (0, sum(map(convolutions, blocks)))


@pytest.mark.slow
def test_a_step_is_the_same(tiny):
    assert_same(step(build(tiny, [])), step(build(tiny, PARTS)))


@pytest.mark.slow
def test_a_step_of_two_replicas_is_the_same(tiny, two_replicas):
    """Batch norm of the second pass needs the statistics of both."""

    def of(parts):
        with two_replicas.scope():
            model = build(tiny, parts)

        def on_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return one_pass(model, IMAGES[int(replica) :][:1])

        results = two_replicas.run(on_replica)
        arrays = [t.numpy() for v in results for t in two_replicas.experimental_local_results(v)]
        return arrays, [v.numpy() for v in model.non_trainable_variables]

    assert_same(of([]), of(PARTS))


@pytest.mark.slow
@pytest.mark.xla
def test_a_step_that_xla_compiles_is_the_same(tiny):
    assert_same(step(build(tiny, []), compiled=True), step(build(tiny, PARTS), compiled=True))


class Old(tf_keras.layers.Layer):
    """An encoder that cannot recompute its stages."""

    def call(self, x):
        return [x]


def test_wrong_parts(tiny):
    with pytest.raises(InputError, match="no part 'encoder'; did you mean 'pixel_encoder'"):
        build(tiny, ["encoder"])
    with pytest.raises(InputError, match="Old.call has no argument 'recompute'"):
        KMaX(3, Old(), None, lambda _: None, lambda _: None, recompute=["pixel_encoder"])
    with pytest.raises(InputError, match="a dual path .* leave 'pixel_decoder' out"):
        build(tiny, ["pixel_decoder"], "kmax_decoder.ClusterPath.dual_path = True")
