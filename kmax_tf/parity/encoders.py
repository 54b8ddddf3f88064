"""Golden cases of ImageNet encoders of torchvision and timm, through the importer.

A zero that an encoder pads around the image is the mean color there and gray here. So padded cases
are compared with the mean taken out of the weights and of the image, which makes both the same.
What gray changes at the border is bounded, and the stem is compared away from it.
"""

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.importers import fold, importer, names
from kmax_tf.importers.variables import variables
from kmax_tf.parity import model as official
from kmax_tf.parity import port, rule
from kmax_tf.parity.cases import Case, Comparison

KIND = "imagenet_torch"
BORDER = 2  # pixels of the stem's output whose inputs are partly padded
GRAY_BORDER = 0.5  # the largest difference by a gray border / the largest value, of any endpoint


def compare(case: Case, comparison: Comparison) -> None:
    """Compares the stem and the endpoints of an encoder."""
    facts = case.facts
    encoder_name = facts["model"].split("_", 1)[1]
    experiment = config.load(Experiment, f"gin/experiments/port_coco_{encoder_name}.gin")
    runtime.set_precision("float32")
    model = experiment.model(experiment.dataset.num_classes)
    encoder, images = model.pixel_encoder, {}
    encoder(tf.zeros([1, 65, 65, 3]))  # creates its variables, and those of no other part
    importer.import_weights(model, KIND, port.state_dict(case), experiment.dataset)
    for kind, shape in facts["input_shapes"].items():
        image = rule.image(facts["seed"], shape)
        comparison.add(f"image/{kind}", image, case[f"image/{kind}"], 0)
        images[kind] = image / 127.5 - 1
    stored = {tensor["name"]: tensor for tensor in facts["tensors"]}
    is_resnet = "padded" not in images
    if is_resnet:
        imported = _resnet(encoder, images["plain"])
        stem = imported["plain/stem_conv"].numpy()
        inside = (slice(None), slice(BORDER, -BORDER), slice(BORDER, -BORDER))
        expected = np.full(stem.shape, np.nan, np.float32)
        expected.flat[:: stored["plain/stem_conv"]["stride"]] = case["plain/stem_conv"].ravel()
        known = ~np.isnan(expected[inside])
        tolerance = stored["plain/stem_conv"]["tol"]
        comparison.add("stem inside", stem[inside][known], expected[inside][known], tolerance)
    else:
        for name, value in unpadded_convnext(encoder, images["plain"]).items():
            comparison.add_whole(stored[name], value, case[name])
        imported = _padded_convnext(encoder, images["padded"])
    for name, value in imported.items():
        tensor = stored[name]
        ours = value.numpy().ravel()[:: tensor["stride"]]
        bound = GRAY_BORDER * tensor["max_abs"]
        comparison.add(f"{name}, gray border", ours, case[name].ravel(), bound)

    mean = _take_mean_out(model)
    if is_resnet:
        centered = _resnet(encoder, images["plain"] - mean)
    else:
        centered = _padded_convnext(encoder, images["padded"] - mean)
    for name, value in centered.items():
        comparison.add_whole(stored[name], value, case[name])


def _take_mean_out(model):
    """Undoes the folding of the mean; returns it in units of the image, which is to lack it."""
    name_map = names.load(KIND)
    ours = {p: v for p, v in variables(model).items() if p.startswith("pixel_encoder/stem/0/")}
    values = {path: v.numpy() for path, v in ours.items()}
    kernel = next(path for path in values if path.endswith("kernel"))
    mean = np.array(name_map.mean)
    # The kernel is folded already: with std 1 / 2 it stays, and the mirrored mean undoes the shift.
    fold.fold_normalization(values, 1 - mean, [0.5] * 3)
    for path, variable in ours.items():
        variable.assign(values[path])
    assert np.array_equal(ours[kernel].numpy(), values[kernel])
    return (2 * mean - 1).astype(np.float32)


def _resnet(encoder, image):
    """Returns the activated stem, and the endpoints, by the names of the golden numbers."""
    with official.record_outputs([encoder.stem[-1]]) as recorded:
        endpoints = encoder(tf.constant(image, tf.float32))
    names_ = ["plain/stem", *(f"plain/layer{i}" for i in range(1, 5))]
    return {"plain/stem_conv": tf.nn.relu(recorded[0])} | dict(zip(names_, endpoints, strict=True))


def _padded_convnext(encoder, image):
    names_ = ["padded/stem", *(f"padded/stage{i}" for i in range(1, 5))]
    return dict(zip(names_, encoder(tf.constant(image, tf.float32)), strict=True))


def unpadded_convnext(encoder: tf_keras.layers.Layer, image: np.ndarray) -> dict[str, tf.Tensor]:
    """Runs the layers of a `ConvNeXt` without padding between stages, as its authors do.

    `image` is float32 [batch, height, width, 3] in [-1, 1], both sides a multiple of 32.
    """
    x = tf.constant(image, tf.float32)
    for layer in encoder.stem:
        x = layer(x)
    tensors = {"plain/stem": x}
    for i, blocks in enumerate(encoder.stages):
        for layer in [*(encoder.downsamplings[i - 1] if i else []), *blocks]:
            x = layer(x)
        tensors[f"plain/stage{i + 1}"] = x
    return tensors
