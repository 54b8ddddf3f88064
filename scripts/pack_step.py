"""Packs a training step with its state and real batches, for machines that have only JAX.

scripts/pack_step.py --gin_file=gin/experiments/demo.gin --batches=100 --out=demo.npz
scripts/run_step.py demo.npz --steps=300     # there
"""

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, ["gin_file"], ["gin"])
    parser.add_argument("--out", required=True, metavar="FILE", help="the archive, *.npz")
    parser.add_argument(
        "--batches", type=command_line.positive, default=100, help="batches that are packed"
    )
    parser.add_argument(
        "--batch_size", type=int, help="images a step, with the schedule scaled as in train.py"
    )
    return parser.parse_args()


def main(options):
    from kmax_tf.tools import pack_step
    from kmax_tf.training import batch_size

    experiment = batch_size.load(options.gin_file, options.gin, batch_size=options.batch_size)
    size = pack_step.pack(experiment, options.out, options.batches)
    print(f"packed the step and {options.batches} batches: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    command_line.run(main, parse)
