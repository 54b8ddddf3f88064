"""Plans a training from dataset statistics: writes a gin file and a page that explains it.

kmax plan --data_dir=data/own/records --out=plans/own.gin --minutes=40
kmax train --gin_file=plans/own.gin --run_dir=runs/own

The page is plans/own.html. `kmax train --gin` overrides single lines of the plan.
"""

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, optional=["device"])
    parser.add_argument("--data_dir", required=True, help="folder of records, of `kmax prepare`")
    parser.add_argument("--out", required=True, help="gin file to write, NAME.gin")
    parser.add_argument("--minutes", type=float, default=30.0, help="training time on this machine")
    parser.add_argument(
        "--weights", default="", help="official ResNet-50 checkpoint, by `kmax import_checkpoint`"
    )
    return parser.parse_args()


def main(options):
    from kmax_tf.planning import planner

    planner.run(options.data_dir, options.out, options.device, options.minutes, options.weights)
