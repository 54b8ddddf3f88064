"""Trains an experiment on a Cloud TPU slice, from renting to deleting it; see docs/train.md.

scripts/launch_tpu.py run --name=coco --zone=europe-west4-a \\
    --gin_file=gin/experiments/coco_resnet50.gin \\
    --data_dir=gs://BUCKET/coco/records --run_dir=gs://BUCKET/runs/coco
scripts/launch_tpu.py delete --name=coco --zone=europe-west4-a

run    rents the slice and a VM for the evaluator, installs, trains and follows the logs. It rents
       again after a preemption, and deletes everything at the end. Ctrl-C while training runs
       leaves it running; the same command follows it again.
delete deletes what an earlier run left.
"""

import os
import pathlib

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, optional=["gin_file", "gin", "run_dir"])
    parser.add_argument("command", choices=["run", "delete"])
    parser.add_argument("--name", required=True, help="of the slice; the VM is called NAME-eval")
    parser.add_argument("--zone", required=True, help="zone of the slice, such as europe-west4-a")
    parser.add_argument("--data_dir", help="records, on gs:// in the region of the zone")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    parser.add_argument(
        "--accelerator",
        default="v3-32",
        metavar="SLICE",
        help="v3-N and v4-N run TensorFlow's servers; v5e-N, v5p-N and v6e-N run PJRT",
    )
    parser.add_argument(
        "--evaluator",
        default="n2-standard-16",
        metavar="TYPE",
        help="machine type of the evaluator VM; one with a GPU, such as g2-standard-8, is faster;"
        " none: no evaluator",
    )
    parser.add_argument(
        "--tensorflow",
        default="",
        metavar="VERSION",
        help="of the client, the workers and the evaluator; default: 2.18.0, with PJRT 2.20.0",
    )
    parser.add_argument(
        "--runtime",
        default="",
        metavar="VERSION",
        help="software version of the slice; default: tpu-vm-tf-2.18.0-pod-se, with PJRT Google's"
        " for the generation",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    return parser.parse_args()


def main(options):
    from kmax_tf.tools.launch import commands

    os.chdir(pathlib.Path(__file__).parents[1])  # the repository that is sent
    if options.command == "run":
        commands.run(options)
    else:
        commands.delete(options)


if __name__ == "__main__":
    command_line.run(main, parse)
