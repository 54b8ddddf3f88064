"""Makes a plan from a folder of records: fingerprint, settings, weights, timed steps, page."""

import gc
import math
import os
import tempfile

import tensorflow as tf

from kmax_tf import config, runtime
from kmax_tf.data import datasets
from kmax_tf.data.records import reader
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.files import write_atomic
from kmax_tf.importers import importer, names, output, own_checkpoint, packages, readers
from kmax_tf.planning import fingerprint, page, plan, timing
from kmax_tf.training.memory import DoesNotFit


def run(data_dir: str, out: str, device: str, minutes: float, weights: str) -> None:
    """Writes the gin file `out`, its page and, from a package, the weights to start from.

    Args:
        data_dir: folder of the records, with splits "train" and "val".
        device: as in `runtime.strategy`.
        minutes: of the training on this machine.
        weights: run folder or checkpoint of the official ResNet-50 model, "" for none.

    Raises:
        InputError: `out` is no .gin file, or `minutes` is not above 0 and finite. The records or
            weights cannot be used. Not even one image for each replica fits in memory, or fewer
            than `plan.PARTS` steps into the minutes.
    """
    check(out, minutes)
    # Before the records are read, or a GPU stays visible.
    strategy = runtime.strategy(device, trains=True)
    print(f"device: {runtime.describe(strategy)}")
    stem = os.path.splitext(out)[0]
    dataset = datasets.load(data_dir)
    records = reader.find(data_dir, "train", dataset)
    records = records._replace(num_examples=reader.count(records))
    reader.find(data_dir, "val", dataset)  # an error here comes before anything slow
    kind = "tpu" if isinstance(strategy, tf.distribute.TPUStrategy) else "gpu"
    kind = kind if kind == "tpu" or tf.config.get_visible_devices("GPU") else "cpu"

    print(f"reading the labels of {data_dir}", flush=True)
    found = fingerprint.take(records, dataset)
    recipe = plan.choose_recipe(kind, weights)
    start, heads = f"{stem}-{recipe.package}-0" if recipe.package else "", None
    if weights:
        start = own_checkpoint.find(weights)
        heads = own_checkpoint.heads(start, dataset)
    made = plan.make(found, recipe, data_dir, start, heads)
    replicas = strategy.num_replicas_in_sync
    batch_size = -(-recipe.batch_size // replicas) * replicas
    made = plan.with_batch_size(made, batch_size, replicas)
    experiment = _load(made)
    if recipe.package:
        _import_package(recipe.package, experiment, start)
    elif weights:
        _try(start, experiment)
    print(f"timing {timing.STEPS} steps", flush=True)
    made, times = _time(made, strategy)
    made = plan.with_steps(made, found.num_images, minutes, *times)
    page.write(f"{stem}.html", found, made, _load(made), records)
    write_atomic(out, plan.gin_text(made, out))
    print(*(f"{s.name} = {s.value}  ({s.reason})" for s in made.settings if s.reason), sep="\n")
    print(f"wrote {out} and {stem}.html")


def check(out: str, minutes: float) -> None:
    """Checks what a plan is asked for, before anything slow.

    Raises:
        InputError: `out` is no .gin file, or `minutes` is not above 0 and finite.
    """
    if not out.endswith(".gin"):
        raise InputError(f"{out}: the plan is a gin file; give a name that ends in .gin")
    if not 0 < minutes < math.inf:
        raise InputError(f"minutes must be above 0 and finite, not {minutes:g}")


def _load(made):
    """Builds the experiment of a plan."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "plan.gin")
        write_atomic(path, plan.gin_text(made, path))
        return config.load(Experiment, path)


def _time(made, strategy):
    """Returns the plan, with a smaller batch if memory asks for it, and the times of its steps."""
    try:
        return made, timing.time_steps(_load(made), strategy)
    except DoesNotFit as error:
        replicas = strategy.num_replicas_in_sync
        half = made.recipe.batch_size // 2 // replicas * replicas
        reason = str(error).partition(";")[0]
        if half == 0:
            raise InputError(f"{reason}; free its memory, or plan with --device=cpu") from error
        print(f"{reason}: trying batches of {half} images", flush=True)
    gc.collect()  # frees the model, which the traceback held
    return _time(plan.with_batch_size(made, half, replicas), strategy)


def _try(weights, experiment):
    """Raises InputError if the training could not start from the weights."""
    model = experiment.build_model()
    build = experiment.build_weights
    for line in own_checkpoint.start_from(model, weights, experiment.dataset, build):
        print(line)


def _import_package(package, experiment, out):
    """Writes a checkpoint `out` of a model whose encoder has the weights of a package."""
    name_map = names.load(packages.KIND)
    source = readers.read(packages.find(package), lambda name: not name_map.ignores(name))
    runtime.set_seed(experiment.seed)
    model = experiment.build_model()
    importer.import_weights(model, packages.KIND, source, experiment.dataset, None)
    output.write(model, None, out)
