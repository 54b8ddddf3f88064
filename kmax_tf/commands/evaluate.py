"""Evaluates the checkpoints of a run while `kmax train` writes them.

kmax evaluate --run_dir=runs/demo
"""

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, ["run_dir"], ["gin", "device"])
    parser.add_argument("--once", action="store_true", help="evaluate the newest checkpoint only")
    parser.add_argument("--checkpoint", help="evaluate this checkpoint only")
    parser.add_argument(
        "--wait",
        type=float,
        default=3600,
        metavar="SECONDS",
        help="how long to wait for the next checkpoint",
    )
    parser.add_argument(
        "--order", choices=["steps", "newest"], default="steps", help="which checkpoint comes next"
    )
    return parser.parse_args()


def main(options):
    from kmax_tf import config, runtime
    from kmax_tf.evaluation import evaluate
    from kmax_tf.experiment import Experiment
    from kmax_tf.run_folder import watch

    once = options.once or options.checkpoint is not None
    gin_file = watch.wait_for_config(options.run_dir, 0 if once else options.wait)
    with runtime.strategy(options.device).scope():
        experiment = config.load(Experiment, gin_file, options.gin)
        evaluate.evaluate_run(
            experiment,
            options.run_dir,
            once=once,
            checkpoint_path=options.checkpoint,
            wait=options.wait,
            newest_first=options.order == "newest",
        )
