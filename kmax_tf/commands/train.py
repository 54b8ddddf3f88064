"""Trains an experiment.

kmax train --gin_file=gin/experiments/demo.gin --run_dir=runs/demo
"""

from kmax_tf import command_line


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
    from kmax_tf import config, runtime
    from kmax_tf.experiment import Experiment
    from kmax_tf.training import batch_size, train

    strategy = train.make_strategy(options.device)
    experiment = config.load(Experiment, options.gin_file, options.gin)
    if options.batch_size is not None:
        bindings = options.gin + batch_size.linear_scaling(experiment, options.batch_size)
        experiment = config.load(Experiment, options.gin_file, bindings)
    service = runtime.service_address(options.tf_data_service)
    train.train(experiment, options.run_dir, strategy, service, allow_changes=options.allow_changes)
