"""The training program: a loop of steps with checkpoints, summaries and preemption."""

import contextlib
import io
import shlex
import sys
import time

import orbit
import tensorflow as tf
import tf_keras

from kmax_tf import runtime
from kmax_tf.data import segment_counts, training_input
from kmax_tf.data.records import reader
from kmax_tf.data.records.reader import Records
from kmax_tf.errors import InputError, first_line
from kmax_tf.experiment import Experiment
from kmax_tf.files import UNREACHABLE, read_bytes, write_atomic
from kmax_tf.importers import own_checkpoint
from kmax_tf.run_folder import checkpoint, layout, provenance
from kmax_tf.training import batch_size, memory, nonfinite, preemption
from kmax_tf.training.progress import Progress
from kmax_tf.training.replica_strategy import ReplicaStrategy
from kmax_tf.training.summaries import Summaries
from kmax_tf.training.trainer import Trainer, make_trainer

LOOP_SECONDS = 5  # between two actions of the host, up to twice as many
PATIENCE = 600  # seconds for which a checkpoint that cannot be saved is tried again
PAUSE = 15  # seconds between two tries
NAMED = 3  # skipped steps of a start whose images are named: finding them reads the epoch again


def training_records(experiment: Experiment) -> Records:
    """Finds and counts the `Records` of the training split.

    Raises InputError if they are missing, empty, of an unknown schema or of other classes.
    """
    records = reader.find(experiment.data_dir, experiment.train_split, experiment.dataset)
    return records._replace(num_examples=reader.count(records))


def training_dataset(
    experiment: Experiment,
    records: Records,
    strategy: tf.distribute.Strategy,
    stride: int,
    start_step: int,
    service: str = "",
) -> tf.distribute.DistributedDataset | tf.data.Dataset:
    """Builds the distributed training input of `records`, from `start_step` on.

    Args:
        stride: the model's output stride.
        service: address of a tf.data service that makes the batches; "" for the hosts themselves.
    """

    def per_host(context):
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        batches = training_input.training_input(
            records,
            experiment.dataset,
            experiment.training_input,
            stride=stride,
            batch_size=context.get_per_replica_batch_size(experiment.batch_size) * replicas,
            num_replicas=replicas,
            seed=experiment.seed,
            start_step=start_step,
            host_index=context.input_pipeline_id,
            num_hosts=context.num_input_pipelines,
            service=service,
        )
        # Otherwise a strategy of several hosts drops the static batch size.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return batches.apply(endless)

    if runtime.is_this_cpu(strategy):  # a copying iterator would be tuned, see autotuning.py
        return per_host(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(per_host)


def make_strategy(device: str) -> tf.distribute.Strategy:
    """Makes the strategy of a device: those of `runtime.strategy`, and "pjrt" or "pjrt:cpu:N".

    For the first it prints the devices; the trainer of "pjrt" does so itself.

    Raises InputError if the device is unknown or missing, or if PJRT is asked for without JAX.
    """
    if device.split(":")[0] != "pjrt":
        strategy = runtime.strategy(device, trains=True)
        print(f"device: {runtime.describe(strategy)}")
        return strategy
    try:
        from kmax_tf.training import pjrt
    except ImportError as error:
        raise InputError(f"device {device!r}: {error}; pip install 'kmax_tf[pjrt]'") from error
    runtime.hide_gpus()  # JAX takes their memory
    return pjrt.strategy(device)


def train(
    experiment: Experiment,
    run_dir: str,
    strategy: tf.distribute.Strategy,
    service: str = "",
    *,
    allow_changes: bool = False,
) -> tf_keras.Model:
    """Trains `experiment` in `run_dir` from its newest checkpoint, and returns the model.

    It writes config.gin, run.json, segments.txt, checkpoints/ and the TensorBoard summaries train/.

    Args:
        service: as in `training_dataset`.
        allow_changes: resume even if the configuration or the records differ.

    Raises:
        InputError: records, checkpoints, losses or a lack of memory that training cannot continue
            with.
        SystemExit: RESTART, after SIGTERM or Ctrl-C and a saved checkpoint; see preemption.py.
    """
    records = training_records(experiment)  # an error here comes before anything slow
    print(batch_size.describe(experiment, strategy.num_replicas_in_sync, records.num_examples))
    made_with = provenance.describe(experiment.dataset, records)
    provenance.check(run_dir, made_with, allow_changes=allow_changes)
    folder = runtime.writable_dir(strategy, run_dir)
    with memory.named_errors():
        trainer = new_trainer(experiment, strategy, run_dir)
        start = _restore(trainer, run_dir)
    if start >= experiment.steps:
        print(f"{run_dir}: all {experiment.steps} steps are done")
        return trainer.model
    if start == 0:
        _check_no_figures(run_dir)
    provenance.write(folder, made_with)
    _show_segments(trainer, records, folder, known=start > 0 and not allow_changes)
    stride = trainer.model.output_stride
    trainer.train_dataset = training_dataset(experiment, records, strategy, stride, start, service)
    split = f"{experiment.data_dir}: split {experiment.train_split!r}"
    with (
        reader.named_errors(records, split, skips=experiment.training_input.skip_corrupt),
        memory.named_errors(run_dir),
        _progress(experiment, records, start, strategy) as progress,
    ):
        trainer.prepare()
        with preemption.watch() as came:
            _run(trainer, folder, progress, came)
    return trainer.model


def _run(trainer, folder, progress, came):
    """Runs loops of steps up to the last one, and saves; `came` tells whether to stop.

    The host acts between two loops. They double in length until one takes `LOOP_SECONDS`, and
    halve where one takes more than twice as long.
    """
    experiment, strategy = trainer.experiment, trainer.strategy
    every, length, stop = experiment.steps_per_loop, 1, False

    def after_loop(scalars):
        nonlocal length, stop
        step = int(trainer.step.numpy())
        is_last = step == experiment.steps
        summary = step % every == 0 or is_last
        seconds = progress.show(step, scalars, trainer.nonfinite, summary=summary)
        if not summary:
            scalars.clear()
        # All hosts must run loops of the same length.
        if not preemption.on_any_host(strategy, seconds * length > LOOP_SECONDS):
            length *= 2
        elif preemption.on_any_host(strategy, seconds * length > 2 * LOOP_SECONDS):
            length = max(1, length // 2)
        stop = preemption.on_any_host(strategy, came()) and not is_last
        if stop or is_last or step % experiment.checkpoint_interval == 0:
            _save(trainer, folder, progress)

    def next_loop(step):
        if stop:  # not earlier: orbit writes the summary after `after_loop`
            again = f"run the same command: {sys.argv[0]} {shlex.join(sys.argv[1:])}"
            again = "call it again" if hasattr(sys, "ps1") else again  # in a notebook
            progress.write(f"stopped at step {step}; to resume, {again}")
            raise SystemExit(preemption.RESTART)
        # Loops end where summaries and checkpoints are due, wherever the run resumed.
        return min(length, every - step % every)

    # No checkpoint manager: orbit would insist on its newest checkpoint.
    controller = orbit.Controller(
        global_step=trainer.step,
        trainer=trainer,
        strategy=strategy,
        train_actions=[after_loop],
        steps_per_loop=next_loop,
        summary_interval=every,
        summary_manager=Summaries(layout.training(folder), trainer.step, progress.write),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # orbit prints every scalar
        controller.train(experiment.steps)


def _save(trainer, folder, progress):
    """Saves a checkpoint; where the storage does not answer, it tries again for `PATIENCE` seconds.

    Hosts that read the variables together would have to try again together, so they do not.
    """
    together = isinstance(trainer.strategy, tf.distribute.MultiWorkerMirroredStrategy)
    deadline, alone = time.monotonic() + PATIENCE, False
    while True:
        try:
            if not alone:
                checkpoint.check_alone(folder, int(trainer.step.numpy()))
            alone = True  # the next try may find what this one wrote
            return trainer.save(folder)
        except UNREACHABLE as error:
            if together or time.monotonic() >= deadline:
                raise
            progress.write(f"saving failed, retrying: {first_line(error)}")
        time.sleep(PAUSE)


def new_trainer(experiment: Experiment, strategy: tf.distribute.Strategy, run_dir: str) -> Trainer:
    """Builds the trainer of a run for its strategy; see `make_trainer`."""
    if not isinstance(strategy, ReplicaStrategy):
        return make_trainer(experiment, strategy)
    from kmax_tf.training import pjrt_trainer  # needs JAX

    return pjrt_trainer.make(experiment, strategy, run_dir)


def _show_segments(trainer, records, folder, known):
    """Says how many segments of the records crops and evaluation lose, on the first host.

    `known`: they are counted already, unless the file is missing.
    """
    if not trainer.strategy.extended.should_checkpoint:
        return
    path = layout.segments(folder)
    if not known or not tf.io.gfile.exists(path):
        print("counting segments lost in crops and evaluation", flush=True)
        counts = segment_counts.of_experiment(records, trainer.experiment, trainer.model)
        write_atomic(path, "\n".join(segment_counts.describe(counts)))
    print(read_bytes(path).decode(), flush=True)


def _restore(trainer, run_dir):
    """Reads the newest checkpoint, or in a new run the initial one; returns the step reached.

    Raises InputError if it cannot be read, or is not the same one on all hosts.
    """
    initial = trainer.experiment.initial_checkpoint
    with trainer.strategy.scope():
        resumed = checkpoint.resume(trainer.saver, run_dir)
        if initial and not resumed:
            initial = own_checkpoint.find(initial)
            lines = _start_from(trainer, initial)
            print(*lines, sep="\n", end="\n" * bool(lines))
    started = f"starting in {run_dir} from {initial or 'random weights'}"
    print(f"resuming from {resumed}" if resumed else started, flush=True)
    rate = trainer.optimizer.encoder_multiplier
    if not (resumed or initial) and rate < 1:
        print(
            f"the encoder has random weights, but {rate:g} of the learning rate; set"
            " experiment.Experiment.initial_checkpoint (docs/model_zoo.md, backbones), or"
            " optimizer.AdamW.encoder_multiplier = 1.0",
            flush=True,
        )
    source, step = resumed or initial, int(trainer.step.numpy())
    fingerprint = checkpoint.fingerprint(source) if source else None
    for number in (step, int((fingerprint or "0")[:6], 16)):
        _check_hosts_agree(trainer.strategy, number)
    return step


def _check_no_figures(run_dir):
    """Raises InputError if a new training would mix its figures with those of an earlier one."""
    if layout.all_metrics(run_dir) or tf.io.gfile.exists(layout.best_note(layout.best(run_dir))):
        places = f"{layout.evaluation(run_dir)} and {layout.best(run_dir)}"
        raise InputError(
            f"{run_dir}: has metrics of an earlier training but no checkpoint to resume;"
            f" move {places} away, or use another run_dir"
        )


def _check_hosts_agree(strategy, number):
    """Raises InputError if the hosts' numbers of a checkpoint differ: they would train apart."""
    for part in divmod(number, 4096):  # sums of these are exact in float32
        whole = part * preemption.sum_of_hosts(strategy, 1.0)
        if preemption.sum_of_hosts(strategy, float(part)) != whole:
            raise InputError(
                "the hosts found different checkpoints; use a --run_dir that all hosts share, and"
                " as initial_checkpoint a checkpoint, not a run that still saves"
            )


def _start_from(trainer, path):
    experiment = trainer.experiment
    build = experiment.build_weights
    return own_checkpoint.start_from(trainer.model, path, experiment.dataset, build)


def _progress(experiment, records, start, strategy):
    batch = experiment.batch_size
    left = NAMED if strategy.extended.should_checkpoint else 0  # the other hosts need not read

    def describe_step(step):
        """Names the images of a step: its position in the input's order is known."""
        nonlocal left
        if not left:
            return nonfinite.describe_step(step, ())
        left -= 1
        ordered = training_input.ordered_records(
            records, experiment.training_input, seed=experiment.seed, start=step * batch
        )
        serialized = (record for _, record, *_ in ordered.take(batch).as_numpy_iterator())
        return nonfinite.describe_step(step, serialized)

    needs_void = experiment.criterion.unmatched_class_weight == "void_share"
    return Progress(
        start, experiment.steps, batch, needs_void=needs_void, describe_step=describe_step
    )
