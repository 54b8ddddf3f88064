"""Trains an experiment.

kmax train --gin_file=gin/experiments/demo.gin --run_dir=runs/demo
kmax train --gin_file=gin/experiments/demo.gin --run_dir=runs/short --minutes=15

The same command resumes a run.
"""

import sys

from kmax_tf import command_line
from kmax_tf.errors import InputError, file_system_reason

LENGTHS = {
    "steps": (int, "number of steps, instead of the experiment's; the warm-up scales too"),
    "epochs": (float, "passes over the training images, instead of --steps"),
    "minutes": (
        float,
        "training time on this machine, instead of --steps; times a few steps first",
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
    return parser.parse_args()


def main(options):
    from kmax_tf import files, runtime
    from kmax_tf.planning import timing
    from kmax_tf.training import preemption, train

    try:
        strategy = train.make_strategy(options.device)
        service = runtime.service_address(options.tf_data_service)
        experiment = timing.load(
            options.gin_file,
            options.gin,
            strategy,
            options.run_dir,
            service,
            batch_size=options.batch_size,
            **{name: getattr(options, name) for name in LENGTHS},
        )
        train.train(
            experiment, options.run_dir, strategy, service, allow_changes=options.allow_changes
        )
    except files.UNREACHABLE as error:
        line = error if isinstance(error, InputError) else file_system_reason(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(preemption.RESTART)  # the launcher starts it again
