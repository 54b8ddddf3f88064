"""Every kind of pixel encoder and of cross-attention, narrow: shapes, precision, gradients."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import runtime
from kmax_tf.errors import InputError
from kmax_tf.importers.variables import variables
from kmax_tf.model import (
    convnext,
    efficientnet_lite,
    kmax,
    kmax_decoder,
    pixel_decoder,
    resnet,
    semantic_branch,
)
from kmax_tf.model.layers.axial_attention import MAX_SPAN, AxialAttention
from kmax_tf.model.layers.stateless_random import DropPath, random_seed
from kmax_tf.training.optimizer import AdamW

ENCODERS = {
    "resnet": lambda: resnet.ResNet(widths=(2, 2, 4, 4), depths=(1, 1, 1, 1)),
    "max_s": lambda: resnet.ResNet(
        stem=((3, 2, 4), (3, 1, 8)),
        widths=(2, 2, 8, 8),
        depths=(1, 1, 2, 2),
        activation="gelu",
        axial_from=16,
        axial_keep_prob=0.8,
    ),
    "convnext": lambda: convnext.ConvNeXt(
        widths=(4, 8, 8, 16), depths=(1, 1, 2, 1), drop_path_keep_prob=0.5
    ),
    "efficientnet_lite": lambda: efficientnet_lite.EfficientNetLite(width=0.25, depth=0.5),
}
CROSS_ATTENTIONS = {
    "dual_path_kmeans": dict(dual_path=True),
    "softmax": dict(cross_attention="spatial_softmax", deep_supervision=False),
    "supervised_softmax": dict(cross_attention="spatial_softmax"),
    "dual_path": dict(cross_attention="spatial_softmax", deep_supervision=False, dual_path=True),
}


def _unbuilt(encoder, stages=4, **cluster_path):
    return kmax.KMaX(
        3,
        ENCODERS[encoder](),
        pixel_decoder.PixelDecoder(
            widths=(8, 8, 4, 4, 2)[:stages],
            depths=(1, 2, 1, 1, 1)[:stages],
            kinds=("axial", "axial", "bottleneck", "bottleneck", "bottleneck")[:stages],
        ),
        functools.partial(
            kmax_decoder.ClusterPath,
            num_clusters=6,
            channels=16,
            hidden=16,
            head_depth=8,
            depths=(1, 2, 1),
            **cluster_path,
        ),
        functools.partial(
            semantic_branch.SemanticBranch, channels=8, rates=(2,), low_level=((3, 4),)
        ),
    )


def _model(encoder, **options):
    return _unbuilt(encoder, **options).create_variables(65, 97)


_float32 = functools.cache(_model)  # for several tests


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (2, 65, 97, 3)).astype(np.uint8)


def _check(model, image):
    """One training step's forward and backward pass: float32, finite, and all is trained."""
    with random_seed(tf.constant([0, 0])), tf.GradientTape() as tape:
        outputs = model(image, training=True)
        tensors = tf.nest.flatten(outputs)
        loss = tf.add_n([tf.reduce_mean(tf.square(x - 1)) for x in tensors])
    assert {x.dtype for x in tensors} == {tf.float32}
    axial = [layer for layer in model.submodules if isinstance(layer, AxialAttention)]
    idle = {layer.similarity_norm.beta.ref() for layer in axial}  # the softmax is blind to it
    for variable, gradient in zip(
        model.trainable_variables, tape.gradient(loss, model.trainable_variables)
    ):
        assert variable.dtype == tf.float32
        assert (gradient is None) == (variable.ref() in idle), variable.name
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient).numpy()).all(), variable.name
    assert all(v.dtype == tf.float32 for v in model.variables)
    return outputs


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_encoders(encoder, precision, image):
    runtime.set_precision(precision)
    try:
        model = _float32(encoder) if precision == "float32" else _model(encoder)
        outputs = _check(model, image)
    finally:
        runtime.set_precision("float32")
    assert [p.mask_logits.shape[1:] for p in outputs.auxiliary] == [
        (3, 4, 6),
        (5, 7, 6),
        (5, 7, 6),
        (9, 13, 6),
    ]
    assert outputs.final.mask_logits.shape == (2, 17, 25, 6)
    assert outputs.final.class_logits.shape == (2, 6, 4)
    assert outputs.semantic_logits.shape == (2, 9, 13, 3)


@pytest.mark.parametrize("variant", CROSS_ATTENTIONS)
def test_cross_attentions(variant, image):
    runtime.set_precision("mixed_bfloat16")
    try:
        model = _model("resnet", **CROSS_ATTENTIONS[variant])
        outputs = _check(model, image)
    finally:
        runtime.set_precision("float32")
    supervised = CROSS_ATTENTIONS[variant].get("deep_supervision", True)
    assert len(outputs.auxiliary) == 4 * supervised == model.num_predictions - 1


@pytest.mark.parametrize("encoder, stride", [("resnet", 2), ("convnext", 4)])
def test_fifth_stage_is_at_the_stem(encoder, stride, image):
    model = _model(encoder, stages=5)
    assert model.output_stride == stride
    shape = (1 + 64 // stride, 1 + 96 // stride)
    assert model(image).final.mask_logits.shape[1:3] == shape


@pytest.mark.parametrize("encoder", ["max_s", "convnext", "efficientnet_lite"])
def test_all_decays_but_norms_biases_and_tables(encoder):
    """As in the official code, what is of the encoder with its rate, a tenth."""
    fixed = ("beta", "gamma", "bias", "layer_scale", "_positions", "cluster_centres")
    model = _float32(encoder)
    before = model.get_weights()
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable))
    optimizer = AdamW(steps=10, learning_rate=1.0, warmup_steps=0)
    optimizer.build_for(model)
    optimizer.apply([tf.zeros_like(v) for v in model.trainable_variables], tf.constant(True))
    trained = {v.ref() for v in model.trainable_variables}
    for path, variable in variables(model).items():
        if variable.ref() in trained:
            rate = 0.1 if path.startswith("pixel_encoder/") else 1.0
            decay = 0.0 if path.endswith(fixed) else 0.05 * rate
            np.testing.assert_allclose(variable.numpy(), 1 - decay, rtol=1e-6, err_msg=path)
    model.set_weights(before)


def test_drop_path_is_where_the_official_models_have_it():
    def keeps(encoder):
        return [
            [round(block.drop_path.keep_prob, 4) for block in blocks] for blocks in encoder.stages
        ]

    max_s = resnet.ResNet(activation="gelu", axial_from=16, axial_keep_prob=0.8)
    assert keeps(max_s)[:2] == [[1] * 3, [1] * 4]
    assert keeps(max_s)[2:] == [[1] + [0.85] * 5, [0.85, 0.8, 0.8]]
    small = convnext.ConvNeXt(depths=(1, 1, 2, 1), drop_path_keep_prob=0.6)
    assert keeps(small) == [[1.0], [0.9], [0.8, 0.7], [0.6]]
    path = kmax_decoder.ClusterPath(3, drop_path_keep_prob=0.8)
    dropped = [x for x in path.submodules if isinstance(x, DropPath) and x.keep_prob == 0.8]
    assert len(dropped) == 6 * 3


def test_size_that_does_not_fit():
    model = _unbuilt("convnext")
    with pytest.raises(InputError, match="image size 64 x 97: .* 32 plus one, such as 65, 97"):
        model.create_variables(64, 97)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: resnet.ResNet(widths=(2, 4)), "^ResNet: widths has 2, depths has 4 entries; bind"),
        (lambda: convnext.ConvNeXt(depths=(1,)), "^ConvNeXt: widths has 4, depths has 1 entries"),
        (
            lambda: pixel_decoder.PixelDecoder(widths=(8, 8)),
            "^PixelDecoder: widths has 2, depths has 4, kinds has 4, endpoints has 2 entries",
        ),
        (lambda: resnet.ResNet(kind="botleneck"), "^kind of block 'botleneck': bind 'basic', 'bot"),
        (lambda: resnet.ResNet(activation="gleu"), "^no activation 'gleu'; did you mean 'gelu'?"),
        (lambda: resnet.ResNet(activation="@"), "^no activation '@'; bind one of Keras"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(make, message):
    with pytest.raises(InputError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_parts_that_do_not_fit_each_other_are_one_line():
    """Else a decoder would not be called, and nothing would say so."""
    finest = [tf.zeros([1, 3, 3, 4])] * 2
    path = kmax_decoder.ClusterPath(3, num_clusters=6, channels=16, hidden=16, depths=(1, 1, 1))
    with pytest.raises(InputError, match="^ClusterPath.depths puts decoders on output 3 .* has 2;"):
        path(finest)
    decoder = pixel_decoder.PixelDecoder()
    with pytest.raises(
        InputError, match="^PixelDecoder: stage 2 takes endpoint -3, .* has 2; bind"
    ):
        decoder(finest)


def test_semantic_logits_finer_than_the_masks_are_one_line(tiny):
    """The loss would divide by a stride of 0."""
    with pytest.raises(InputError, match="low_level ends at a finer stride than the masks; bind"):
        tiny("semantic_branch.SemanticBranch.low_level = ((2, 8), (1, 8))").build_model()


def test_more_positions_than_the_table_has_are_refused():
    """A GPU would take zeros for them, and XLA the table's last row."""
    attention = AxialAttention(8)
    assert attention(tf.zeros([1, MAX_SPAN, 4])).shape == [1, MAX_SPAN, 16]
    with pytest.raises(InputError, match=f"over {MAX_SPAN + 1} positions, .* knows {MAX_SPAN}"):
        attention(tf.zeros([1, MAX_SPAN + 1, 4]))
