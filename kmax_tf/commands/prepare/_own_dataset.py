"""What all forms of labels of an own dataset share: flags, and the plan of a training."""

import os

from kmax_tf import command_line

FOLDERS = "images", "labels", "val_images", "val_labels"


def parser(documentation: str, has_background: bool = True) -> command_line.Parser:
    """Returns a parser of the flags that `run` needs."""
    made = command_line.Parser(documentation, optional=["workers"])
    made.add_argument("--out", required=True, help="folder for all output")
    made.add_argument(
        "--val_share",
        type=float,
        default=0.15,
        help="validation share of the images, if there is no validation folder",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of the split")
    made.add_argument(
        "--plan", metavar="FILE", help="also plan the training, as `kmax plan --out FILE` does"
    )
    made.add_argument("--minutes", type=float, default=30.0, help="training time of the plan")
    if has_background:
        made.add_argument(
            "--background",
            default="background",
            metavar="NAME",
            help="stuff class of pixels outside all objects, or void for none",
        )
    return made


def add_folders(made: command_line.Parser) -> None:
    """Adds `FOLDERS`, the flags of labels that are files beside the images."""
    made.add_argument("--images", required=True, help="folder of the images")
    made.add_argument("--labels", required=True, help="folder of the labels, PNG or TIFF")
    made.add_argument("--val_images", help="folder of the images of the validation")
    made.add_argument("--val_labels", help="folder of the labels of the validation")


def run(options, inputs, read):
    """Makes the records of a dataset and, with --plan, plans its training.

    Args:
        options: the flags.
        inputs: names of the flags that are folders or files to read.
        read: flags -> `RawDataset`, what the form lists.
    """
    from data_prep import own_dataset

    if not options.plan:
        own_dataset.run(options, inputs, read)
        return
    from kmax_tf.planning import planner

    planner.check(options.plan, options.minutes)
    own_dataset.run(options, inputs, read)
    planner.run(os.path.join(options.out, "records"), options.plan, "auto", options.minutes, "")
