"""Trains an experiment.

kmax train --gin_file=gin/experiments/demo.gin --run_dir=runs/demo
kmax train --gin_file=gin/experiments/demo.gin --run_dir=runs/short --minutes=15

The same command resumes a run.
"""

from kmax_tf import command_line

LENGTHS = {
    "steps": (int, "number of steps, instead of the experiment's; the warm-up keeps its share"),
    "epochs": (float, "passes over the training images, instead of --steps"),
    "minutes": (
        float,
        "time of the training on this machine, instead of --steps; times a few steps first",
    ),
}


def parse():
    parser = command_line.Parser(__doc__, ["gin_file", "run_dir"], ["gin"])
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, gpu, tpu:NAME, local (this host's TPU), pjrt (all devices of JAX) or"
        " pjrt:cpu:N (N virtual ones)",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        help="images per step, all replicas together; default: the experiment's. Learning rate,"
        " warm-up and schedule scale linearly; the run's config.gin holds the scaled values",
    )
    for name, (kind, text) in LENGTHS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="resume a run that began with another configuration or dataset",
    )
    parser.add_argument(
        "--tf_data_service",
        default="",
        metavar="ADDRESS",
        help="grpc://HOST:PORT of a tf.data service that makes the input; with several workers a"
        " resumed run is not identical to an uninterrupted one",
    )
    options = parser.parse_args()
    given = [f"--{name}" for name in LENGTHS if getattr(options, name) is not None]
    if len(given) > 1:
        parser.error(f"{' and '.join(given)}: give one of them")
    if given and getattr(options, given[0][2:]) <= 0:
        parser.error(f"{given[0]}: give a number above 0")
    return options


def main(options):
    from kmax_tf import config, runtime
    from kmax_tf.experiment import Experiment
    from kmax_tf.training import batch_size, train

    strategy = train.make_strategy(options.device)
    service = runtime.service_address(options.tf_data_service)
    experiment = config.load(Experiment, options.gin_file, options.gin)
    bindings = list(options.gin)
    if options.batch_size is not None:
        bindings += batch_size.linear_scaling(experiment, options.batch_size)
        experiment = config.load(Experiment, options.gin_file, bindings)
    steps = number_of_steps(options, experiment, strategy)
    if steps is not None:
        bindings += batch_size.length(experiment, steps)
        experiment = config.load(Experiment, options.gin_file, bindings)
    train.train(experiment, options.run_dir, strategy, service, allow_changes=options.allow_changes)


def number_of_steps(options, experiment, strategy):
    """Returns the number that the flags ask for, None for the experiment's."""
    from kmax_tf.planning import timing
    from kmax_tf.run_folder import provenance
    from kmax_tf.training import train

    if options.epochs is not None:
        images = train.training_records(experiment).num_examples
        return max(1, round(options.epochs * images / experiment.batch_size))
    if options.minutes is None:
        return options.steps
    steps = provenance.steps(options.run_dir)
    if steps is not None:
        print(f"{options.run_dir}: began with {steps} steps, which stay; --minutes is for new runs")
        return steps
    print(f"timing the steps, to fit {options.minutes:g} minutes", flush=True)
    return timing.steps_within(options.minutes, experiment, strategy)
