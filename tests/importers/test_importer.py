"""A model is filled from other code's weights entirely or not at all."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src.applications import convnext as applications

from kmax_tf import commands, config
from kmax_tf.data import datasets
from kmax_tf.data.datasets import Category, Dataset
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.importers import importer, names, output, readers
from kmax_tf.importers.variables import variables
from kmax_tf.model.convnext import ConvNeXt
from kmax_tf.parity.encoders import unpadded_convnext
from kmax_tf.run_folder import checkpoint

HEADS = ["cluster_path/head", "cluster_path/decoders/0/head", "semantic_branch"]


@pytest.fixture(scope="module")
def built(records, tiny_text, tmp_path_factory):
    """The toy model, for all tests: building it takes its time."""
    path = tmp_path_factory.mktemp("importer") / "tiny.gin"
    path.write_text(tiny_text.format(records=records))
    return config.load(Experiment, str(path)).build_model()


@pytest.fixture
def model(built):
    """The toy model, which has its first weights again after the test."""
    before = [(v, v.numpy()) for v in built.variables]
    yield built
    for variable, value in before:
        variable.assign(value)


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A function: kinds of our own names, with what their maps say beside."""
    monkeypatch.setattr(names, "MAPS", str(tmp_path))

    def write(**facts):
        (tmp_path / "plain.json").write_text(json.dumps({"ignore": [], "rules": []} | facts))
        return "plain"

    return write


def weights(model, rng=None):
    """Random arrays by our paths."""
    rng = rng or np.random.default_rng(0)
    return {
        path: rng.standard_normal(v.shape).astype(np.float32)
        for path, v in variables(model).items()
    }


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def folded(values):
    """What weights of torchvision become; its epsilon is 1e-5."""
    folded = dict(values)
    for path, variance in values.items():
        if path.endswith("moving_variance"):
            gamma = path.replace("moving_variance", "gamma")
            folded[gamma] = values[gamma] * np.sqrt((variance + 1e-3) / (variance + 1e-5))
    stem = "pixel_encoder/stem/0/"
    kernel, bias, sign = f"{stem}kernel", f"{stem}bias", 1
    if kernel not in values:
        kernel, bias, sign = f"{stem}conv/kernel", f"{stem}norm/moving_mean", -1
    folded[kernel] = values[kernel] / (2 * STD[:, None])
    shift = np.einsum("hwco,c->o", values[kernel], (0.5 - MEAN) / STD)
    folded[bias] = values[bias] + sign * shift
    return folded


def assert_close(model, expected):
    ours = variables(model)
    for path, value in expected.items():
        np.testing.assert_allclose(ours[path].numpy(), value, 1e-5, 1e-6, err_msg=path)


def assert_holds(model, expected):
    ours = variables(model)
    for path, value in expected.items():
        np.testing.assert_array_equal(ours[path].numpy(), value, path)


def digits():
    return datasets.load("panoptic_digits")


def shuffled():
    """The digits, whose ids are in no order: our channels differ from those by id."""
    classes = digits().categories
    return Dataset("shuffled", tuple(c._replace(id=5 * c.id % 17) for c in classes))


def test_paths_are_unique_and_complete(model):
    paths = variables(model)
    assert len({v.ref() for v in paths.values()}) == len(paths) == len(model.variables)


def test_fills_everything(model, plain):
    source = weights(model)
    report = importer.import_weights(model, plain(), source, digits())
    assert report == importer.Report(len(source), (), (), ())
    assert_holds(model, source)


def test_semantic_channels_are_reordered(model, plain):
    """The official order: by id, and void, where there is a channel for it, first."""
    source, dataset = weights(model), shuffled()
    kind = plain(semantic_channels="by_id_void_first", class_channels="by_id")
    importer.import_weights(model, kind, source, dataset)
    ours = variables(model)
    ids = sorted(c.id for c in dataset.categories)
    rank = [ids.index(c.id) for c in dataset.categories]
    assert rank[:4] == [4, 8, 12, 2]
    bias = "semantic_branch/classifier/bias"
    first = source[bias].size > dataset.num_classes
    np.testing.assert_array_equal(
        ours[bias].numpy()[: dataset.num_classes], source[bias][np.array(rank) + first]
    )
    bias = "cluster_path/head/classifier/bias"
    np.testing.assert_array_equal(ours[bias].numpy(), source[bias][rank + [len(rank)]])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(model, plain, value):
    """As a variance beyond the largest float16: each image would have the same segments."""
    source = weights(model)
    name = sorted(source)[1]
    source[name].flat[0] = value
    with pytest.raises(InputError, match=f"^1 weights are not finite: {name}; the file is damaged"):
        importer.import_weights(model, plain(), source, digits())


def test_mismatches_are_listed_and_change_nothing(model, plain):
    before = {path: v.numpy() for path, v in variables(model).items()}
    source = weights(model)
    gone, wrong = sorted(source)[0], sorted(source)[-1]
    del source[gone]
    source[wrong] = np.zeros([3, 1, 4, 1, 5], np.float32)
    source["ema/step"] = np.zeros([])
    with pytest.raises(InputError) as raised:
        importer.import_weights(model, plain(), source, digits())
    shape = re.escape(f"1 of another shape: {wrong} ([3, 1, 4, 1, 5] for ")
    assert re.search(f"1 missing: {gone}; 1 unexpected: ema/step; {shape}", str(raised.value))
    assert "\n" not in str(raised.value)
    assert_holds(model, before)

    with pytest.raises(InputError, match=r"\d+ missing: .* and \d+ more; choose another --kind"):
        importer.import_weights(model, plain(), {}, digits())
    del source["ema/step"]
    with pytest.raises(InputError, match="^(?!.*unexpected).*another shape"):
        importer.import_weights(model, plain(ignore=["^ema/"]), source, digits())


def test_two_names_for_one_variable(model, plain):
    source = weights(model)
    path = sorted(source)[0]
    source[f"copy/{path}"] = source[path]
    with pytest.raises(InputError, match=f"1 unexpected: copy/{path}"):
        importer.import_weights(model, plain(rules=[["^copy/", ""]]), source, digits())


def test_another_number_of_classes(model, plain):
    source = weights(model)
    for head in HEADS:
        for leaf in ("kernel", "bias"):
            path = f"{head}/classifier/{leaf}"
            source[path] = np.concatenate([source[path], source[path][..., :3]], -1)
    with pytest.raises(InputError, match="6 of another shape"):
        importer.import_weights(model, plain(), source, digits())


def test_classes_of_another_dataset(model, plain):
    """Classes are found by name; those that the source lacks keep their initial weights."""
    before = {path: v.numpy() for path, v in variables(model).items()}
    ours = digits()
    known = ours.categories[3]._replace(id=3), ours.categories[-1]._replace(id=1)
    other = Category(2, "zebra", False, (0, 0, 0))
    theirs = Dataset("other", (*known, other))
    source = weights(model)
    for head in HEADS:
        for leaf in ("kernel", "bias"):
            path = f"{head}/classifier/{leaf}"
            extra = source[path].shape[-1] - ours.num_classes
            source[path] = source[path][..., : theirs.num_classes + extra]
    kind = plain(semantic_channels="by_id", class_channels="by_id")
    report = importer.import_weights(model, kind, source, ours, theirs)
    assert report.dropped_classes == ("zebra",)
    assert len(report.fresh_classes) == ours.num_classes - 2
    assert ours.categories[3].name not in report.fresh_classes
    for head in HEADS:
        for leaf in ("kernel", "bias"):
            path = f"{head}/classifier/{leaf}"
            expected = before[path].copy()
            expected[..., 3] = source[path][..., 2]
            expected[..., ours.num_classes - 1] = source[path][..., 0]
            if expected.shape[-1] > ours.num_classes:  # void
                expected[..., -1] = source[path][..., -1]
            np.testing.assert_array_equal(variables(model)[path].numpy(), expected)


def torchvision_resnet(model, rng):
    """The tiny encoder's weights under the names and in the layout of torchvision."""
    norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
    norm["moving_variance"] = "running_var"
    found, expected = {"fc.weight": rng.standard_normal((10, 4))}, {}
    for path, v in variables(model).items():
        if not path.startswith("pixel_encoder/"):
            continue
        value = rng.uniform(0.5, 1.5, v.shape).astype(np.float32)
        expected[path] = value
        *place, module, leaf = path.removeprefix("pixel_encoder/").split("/")
        if place[0] == "stem":
            name = "conv1.weight" if module == "conv" else f"bn1.{norm[leaf]}"
        else:
            layer = f"layer{int(place[1]) + 1}.{place[2]}"
            if place[3] == "shortcut":
                index = 0 if module == "conv" else 1
                name = f"{layer}.downsample.{index}.{norm.get(leaf, 'weight')}"
            else:
                kind = "conv" if module == "conv" else "bn"
                name = f"{layer}.{kind}{int(place[4]) + 1}.{norm.get(leaf, 'weight')}"
        found[name] = value.transpose(3, 2, 0, 1) if leaf == "kernel" else value
    return found, expected


MAX_POOL = "resnet.ResNet.max_pool = True"
RELU = 'resnet.ResNet.activation = "relu"'


def test_torchvision_encoder(tiny):
    model = tiny(MAX_POOL, RELU).build_model()
    before = {path: v.numpy() for path, v in variables(model).items()}
    source, expected = torchvision_resnet(model, np.random.default_rng(1))
    report = importer.import_weights(model, "imagenet_torch", source, digits())
    assert report.fresh_parts == ("pixel_decoder", "cluster_path", "semantic_branch")
    assert report.assigned == len(expected)
    assert report.lines()[-1].startswith("assumed image normalization: mean [0.485, ")
    assert_holds(model, {p: v for p, v in before.items() if not p.startswith("pixel_encoder/")})
    assert_close(model, folded(expected))


def test_a_model_of_another_function_is_refused(model):
    """Names and shapes are the same without the max-pool, and the network is another one."""
    source, _ = torchvision_resnet(model, np.random.default_rng(1))
    message = (
        "imagenet_torch need other settings: pixel_encoder.max_pool is False here and True"
        " there.*; use --gin_file=gin/experiments/port_coco_resnet50.gin"
    )
    before = {path: v.numpy() for path, v in variables(model).items()}
    with pytest.raises(InputError, match=message):
        importer.import_weights(
            model, "imagenet_torch", source, digits(), gin_file="gin/experiments/coco_resnet50.gin"
        )
    assert_holds(model, before)


@pytest.fixture
def convnext(model):
    """A model whose pixel encoder is a small ConvNeXt."""
    encoder = model.pixel_encoder
    model.pixel_encoder = ConvNeXt(widths=(4, 8, 12, 16), depths=(1, 2, 1, 1))
    model.pixel_encoder(tf.zeros([1, 65, 65, 3]))
    yield model
    model.pixel_encoder = encoder


@pytest.mark.parametrize("include_top", [True, False])
def test_keras_convnext(convnext, tmp_path, include_top):
    """Weights as tf_keras.applications saves them, with the classification head and without it."""
    other = applications.ConvNeXt(
        depths=[1, 2, 1, 1],
        projection_dims=[4, 8, 12, 16],
        default_size=64,
        model_name="convnext_mini",
        weights=None,
        classes=3,
        include_top=include_top,
    )
    rng = np.random.default_rng(2)
    trained = [v for v in other.weights if "normalization" not in v.name]
    for v in trained:
        v.assign(rng.standard_normal(v.shape) * 0.3)
    other.save_weights(tmp_path / "w.h5")
    source = readers.read(str(tmp_path / "w.h5"))
    importer.import_weights(convnext, "imagenet_keras", source, digits())

    image = rng.uniform(0, 255, [2, 64, 64, 3]).astype(np.float32)
    names_of_blocks = [f"convnext_mini_downsampling_block_{i}" for i in range(3)]
    # The last node: a Sequential layer has one of its own besides the outer model's.
    stages = [other.get_layer(n).inbound_nodes[-1].input_tensors for n in names_of_blocks]
    after = other.get_layer("convnext_mini_head_gap") if include_top else other.layers[-1]
    expected = tf_keras.Model(other.input, [*stages, after.input])(image)
    ours = unpadded_convnext(convnext.pixel_encoder, image / 127.5 - 1)
    for i, stage in enumerate(expected, 1):
        scale = np.abs(stage).max()
        np.testing.assert_allclose(ours[f"plain/stage{i}"], stage, atol=2e-5 * scale)


@pytest.mark.parametrize("names_of", ["torchvision", "timm", "original"])
def test_torch_convnext(convnext, names_of):
    layouts = {
        "torchvision": {
            "stem": "features.0.{0}",
            "downsamplings": "features.{2}.{1}",
            "block": "features.{2}.{1}.",
            "parts": ["block.0", "block.2", "block.3", "block.5", "layer_scale"],
        },
        "timm": {
            "stem": "stem.{0}",
            "downsamplings": "stages.{3}.downsample.{1}",
            "block": "stages.{0}.blocks.{1}.",
            "parts": ["conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"],
        },
        "original": {
            "stem": "downsample_layers.0.{0}",
            "downsamplings": "downsample_layers.{3}.{1}",
            "block": "stages.{0}.{1}.",
            "parts": ["dwconv", "norm", "pwconv1", "pwconv2", "gamma"],
        },
    }
    layout = layouts[names_of]
    parts = dict(zip(["depthwise", "norm", "expand", "project"], layout["parts"]))
    rng, source, expected = np.random.default_rng(3), {"head.bias": np.zeros(3)}, {}
    for path, v in variables(convnext).items():
        if not path.startswith("pixel_encoder/"):
            continue
        value = expected[path] = rng.standard_normal(v.shape).astype(np.float32)
        place, *index, leaf = path.removeprefix("pixel_encoder/").split("/")
        suffix = {"gamma": "weight", "beta": "bias", "bias": "bias"}.get(leaf, "weight")
        if place == "stages":
            stage, block, *part = index
            prefix = layout["block"].format(stage, block, 2 * int(stage) + 1)
            name = prefix + (f"{parts[part[0]]}.{suffix}" if part else layout["parts"][4])
        elif place == "stem":
            name = f"{layout['stem'].format(index[0])}.{suffix}"
        else:
            i = int(index[0])
            name = f"{layout['downsamplings'].format(i, index[1], 2 * i + 2, i + 1)}.{suffix}"
        if leaf == "depthwise_kernel":
            value = value.transpose(2, 3, 0, 1)
        elif leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        elif leaf == "layer_scale" and names_of == "torchvision":
            value = value[:, None, None]
        source[name] = value
    importer.import_weights(convnext, "imagenet_torch", source, digits())
    assert_close(convnext, folded(expected))


def test_command(tiny, tmp_path, capsys):
    """From a safetensors file to a checkpoint, and from that to a run folder for other programs."""
    experiment = tiny(MAX_POOL, RELU)
    with open(tmp_path / "tiny.gin", "a") as file:
        file.write(RELU)
    model = experiment.build_model()
    source, expected = torchvision_resnet(model, np.random.default_rng(4))
    source = {name: value.astype(np.float32) for name, value in source.items()}
    ends = np.cumsum([value.nbytes for value in source.values()]).tolist()
    header = {
        name: {"dtype": "F32", "shape": value.shape, "data_offsets": [end - value.nbytes, end]}
        for (name, value), end in zip(source.items(), ends)
    }
    text = json.dumps(header).encode()
    body = b"".join(value.tobytes() for value in source.values())
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)

    def words(out, kind, source):
        flags = {"gin_file": tmp_path / "tiny.gin", "gin": MAX_POOL}
        flags |= {"kind": kind, "source": tmp_path / source, "out": out}
        return ["import_checkpoint", *(f"--{flag}={value}" for flag, value in flags.items())]

    def refused(*arguments):
        with pytest.raises(SystemExit) as stop:
            commands.main(words(*arguments))
        return stop.value.code

    path = tmp_path / "encoder-0"
    commands.main(words(path, "imagenet_torch", "w.safetensors"))
    told = capsys.readouterr().out
    assert f"wrote {len(expected)} variables" in told and str(path) in told
    assert "newly initialized, not in the source: pixel_decoder" in told
    before = {p: v.numpy() for p, v in variables(model).items() if "pixel_encoder/" not in p}
    checkpoint.restore_initial(model, str(path))
    assert_close(model, folded(expected))
    assert_holds(model, before)
    again = refused(path, "imagenet_torch", "w.safetensors")
    assert "already holds a checkpoint" in again
    run = tmp_path / "run"
    assert f"an encoder is not a run; give a checkpoint: --out={run}-0" in refused(
        run, "imagenet_torch", "w.safetensors"
    )
    wrong = refused(tmp_path / "start-7", "pytorch", "w.safetensors")
    assert re.match("error: .*w.safetensors: weights of kind pytorch need other settings", wrong)
    assert not list(tmp_path.glob("start*")) and not run.exists()

    whole = tmp_path / "whole-0"
    output.write(model, experiment.dataset, str(whole))
    with pytest.raises(SystemExit) as stop:
        commands.main([*words(tmp_path / "other-0", "kmax_tf", "whole-0"), "--classes=coco"])
    assert "whole-0 has other classes, those of panoptic_digits" in stop.value.code
    run.mkdir()
    (run / "config.gin").write_text("of a training that has no checkpoint yet")
    assert "is already a run; choose another --out" in refused(run, "kmax_tf", "whole-0")
    config.load(Experiment, str(tmp_path / "tiny.gin"), [MAX_POOL])
    (run / "config.gin").write_text(config.resolved())  # as an interrupted import leaves it
    commands.main(words(run, "kmax_tf", "whole-0"))
    assert checkpoint.completed(str(run)) == [str(run / "checkpoints" / "ckpt-0")]
    assert MAX_POOL in (run / "config.gin").read_text()


def test_flags_that_would_do_nothing_and_classes_that_nothing_tells(tiny, tmp_path):
    tiny()
    own = Dataset("own", (Category(1, "cat", True, (1, 2, 3)),))
    split = datasets.with_split(str(tmp_path), own, "train", datasets.Split(0, 0))
    (tmp_path / "dataset.json").write_text(split)

    def refused(kind, *flags):
        command = ["import_checkpoint", f"--gin_file={tmp_path}/tiny.gin", f"--kind={kind}"]
        with pytest.raises(SystemExit) as stop:
            commands.main([*command, "--source=missing", f"--out={tmp_path}/a-0", *flags])
        return stop.value.code

    assert "--classes: imagenet_torch is an encoder" in refused("imagenet_torch", "--classes=coco")
    assert "deeplab2 has a fixed order" in refused("deeplab2", "--semantic_channels=by_id")
    load = f"--gin=datasets.load.source = '{tmp_path}'"
    assert "error: --classes: deeplab2 weights do not list their classes" in refused(
        "deeplab2", load
    )
    assert refused("deeplab2", load, "--classes=coco").startswith("error: missing: cannot be read")
