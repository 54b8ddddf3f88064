"""What several tests share: a few images of the built-in dataset, and a toy model on them."""

import kmax_tf  # before TensorFlow, whose settings it makes

# isort: split
import collections
import functools
import gc
import pathlib
import runpy
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from data_prep import coco_format, convert, demo, pool
from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.inference import export, predictor
from kmax_tf.predict import Segmenter

TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "training")]  # for stubs and toy
from stubs import Stub  # noqa: E402

# Two devices for the tests of replicas; to be said before TensorFlow touches the CPU.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_addoption(parser):
    parser.addoption(
        "--shared",
        metavar="DIR",
        type=pathlib.Path,
        help="a folder with more golden numbers (DIR/golden) and real images (DIR/data)",
    )


def pytest_collection_modifyitems(items):
    """Long files come first, or one process would end long after the other: training, then slow."""
    slow = collections.Counter(
        item.path
        for item in items
        if item.get_closest_marker("slow") and not item.get_closest_marker("long")
    )
    items.sort(key=lambda item: ("training" not in item.path.parts, -slow[item.path]))


def pytest_collection_finish():
    """Tracing makes many objects, for which Python would look at all of TensorFlow's each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def own_command_line(monkeypatch):
    """`kmax_tf.commands.main` sets the words of the process, which the next test shall not see."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])


def pytest_generate_tests(metafunc):
    """Gives `golden` each folder of golden numbers: the project's own, and that of --shared."""
    if "golden" in metafunc.fixturenames:
        folders = {"own": TESTS / "golden"}
        if shared := metafunc.config.getoption("shared"):
            folders["shared"] = shared.resolve() / "golden"
        metafunc.parametrize("golden", folders.values(), ids=folders)


TINY = """
from __gin__ import dynamic_registration
from kmax_tf import experiment
from kmax_tf.training import optimizer
from kmax_tf.data import training_input
from kmax_tf.loss import criterion
from kmax_tf.model import semantic_branch
from kmax_tf.model import kmax
from kmax_tf.model import kmax_decoder
from kmax_tf.model import pixel_decoder
from kmax_tf.model import resnet

include "gin/experiments/demo.gin"

experiment.Experiment.data_dir = "{records}"
experiment.Experiment.batch_size = 2
experiment.Experiment.steps = 4
experiment.Experiment.steps_per_loop = 1
experiment.Experiment.checkpoint_interval = 1
experiment.Experiment.evaluation_batch_size = 2
optimizer.AdamW.warmup_steps = 1
training_input.TrainingInput.shuffle_buffer = 4
criterion.Criterion.contrast_pixels = 32
resnet.ResNet.stem = ((3, 2, 8),)
resnet.ResNet.widths = (8, 16, 16)
pixel_decoder.PixelDecoder.widths = (8, 8)
pixel_decoder.PixelDecoder.depths = (1, 1)
pixel_decoder.PixelDecoder.kinds = ("axial", "bottleneck")
kmax_decoder.ClusterPath.channels = 16
kmax_decoder.ClusterPath.hidden = 16
kmax_decoder.ClusterPath.head_depth = 16
kmax_decoder.ClusterPath.depths = (1,)
semantic_branch.SemanticBranch.channels = 8
semantic_branch.SemanticBranch.low_level = ((3, 8),)
"""


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> str:
    """A folder of records with 6 training and 3 validation images of panoptic digits."""
    root = tmp_path_factory.mktemp("digits")
    demo.make(str(root), num_train=6, num_val=3, workers=1)
    for split in ("train", "val"):
        labels = str(root / f"panoptic_{split}")
        source = coco_format.read([str(root / split)], [f"{labels}.json"], [labels])
        alone = functools.partial(pool.run, workers=1)
        convert.convert(*source, str(root / "records"), split, num_shards=2, run=alone)
    return str(root / "records")


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """The toy experiment as a gin file, but for the folder of its {records}."""
    return TINY


@pytest.fixture
def tiny(records, tmp_path):
    """A function: gin bindings -> the toy experiment."""

    def load(*bindings: str) -> Experiment:
        path = tmp_path / "tiny.gin"
        path.write_text(TINY.format(records=records))
        return config.load(Experiment, str(path), bindings)

    return load


class Exported(NamedTuple):
    """An export of the toy model, whose every mask is pasted, and what it was made of."""

    folder: str
    experiment: Experiment
    model: tf_keras.Model


@pytest.fixture(scope="session")
def exported(records, tmp_path_factory) -> Exported:
    """The export, for all tests: making it takes its time."""
    root = tmp_path_factory.mktemp("exported")
    (root / "tiny.gin").write_text(TINY.format(records=records))
    # An untrained model is sure of nothing.
    names = ("thing_threshold", "stuff_threshold", "overlap_threshold")
    bindings = [f"postprocess.PostProcess.{name} = 0.0" for name in names]
    experiment = config.load(Experiment, str(root / "tiny.gin"), bindings)
    runtime.set_seed(experiment.seed)  # the same toy in every run
    model = experiment.build_evaluation_model()
    model.cluster_path.head.mask_norm.gamma.assign(tf.fill([1, 1, 1, 1], 100.0))  # sharp masks
    export.export(experiment, model, str(root / "export"), [("weights", "none")])
    return Exported(str(root / "export"), experiment, model)


@pytest.fixture(scope="session")
def segmenter(exported) -> Segmenter:
    """The export, loaded once for all tests that leave it as it is."""
    return kmax_tf.load(exported.folder)


@pytest.fixture(scope="session")
def predict_batch(exported) -> Callable:
    """The function of `build_predictor` for the exported model, which is traced once."""
    return predictor.build_predictor(exported.model, exported.experiment)


@pytest.fixture
def stub(exported) -> Stub:
    """Stands for the exported model."""
    return Stub(exported.experiment.dataset.num_classes)


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.MirroredStrategy:
    """One for all tests: another's collectives would get the numbers of this one's."""
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


@pytest.fixture
def run_script(monkeypatch) -> Callable:
    """A function: the name of a script and its words -> runs it in this process."""

    def run(name, *words):
        path = str(TESTS.parent / "scripts" / name)
        monkeypatch.setattr(sys, "argv", [path, *words])
        runpy.run_path(path, run_name="__main__")

    return run


@pytest.fixture(scope="session")
def default_signals():
    """A function for subprocess's `preexec_fn`: what was ignored, as by nohup, is heard again."""

    def reset():
        for kind in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.SIG_DFL)

    return reset


@pytest.fixture
def zero_weights():
    """New variables are zero; random numbers for a billion weights would take most of the time."""

    def zeros(next_creator, **arguments):
        shape, dtype = arguments.get("shape"), arguments["dtype"]
        if shape is not None:
            arguments["initial_value"] = lambda: tf.zeros(shape, dtype)
        return next_creator(**arguments)

    with tf.variable_creator_scope(zeros):
        yield


@pytest.fixture
def forget_models():
    """Frees all models that were traced, those of other tests too."""
    yield
    runtime.forget_models(runtime.custom_gradients())


@pytest.fixture
def assert_same_state():
    """A function: two paths of checkpoints, every number of which must be the same bits."""

    def compare(path, expected_path):
        state, expected = map(tf.train.load_checkpoint, (path, expected_path))
        assert state.get_variable_to_shape_map() == expected.get_variable_to_shape_map()
        for key in expected.get_variable_to_shape_map():
            if key != "_CHECKPOINTABLE_OBJECT_GRAPH":  # Python's objects, which count on
                values = state.get_tensor(key), expected.get_tensor(key)
                np.testing.assert_array_equal(*values, err_msg=key)

    return compare


@pytest.fixture
def shared(pytestconfig) -> pathlib.Path:
    """The folder of --shared, which has real images; the test is skipped without it."""
    folder = pytestconfig.getoption("shared")
    if folder is None:
        pytest.skip("needs real images: --shared DIR")
    return folder.resolve()


@pytest.fixture
def round_products(monkeypatch) -> Callable:
    """A function that lets `tf.einsum` round what it multiplies to bfloat16, as a TPU does."""
    exact = tf.einsum

    def rounded(equation, *factors):
        factors = [tf.cast(tf.cast(x, tf.bfloat16), x.dtype) for x in factors]
        return exact(equation, *factors)

    return lambda: monkeypatch.setattr(tf, "einsum", rounded)
