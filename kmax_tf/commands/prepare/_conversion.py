"""The flags that all converters share, of COCO panoptic format and of known datasets."""

from collections.abc import Sequence
from typing import Any

from kmax_tf import command_line


def parser(documentation: str, splits: Sequence[str] | None = None) -> command_line.Parser:
    """Returns a parser of the flags that `data_prep.convert.run` needs.

    Args:
        documentation: text of the converter's --help.
        splits: the splits of a dataset in one folder, --source; the first two are the default.
            None allows any split.
    """
    made = command_line.Parser(documentation, optional=["workers"])
    if splits:
        text = f"default: {' '.join(splits[:2])}"
        made.add_argument("--source", required=True, help="folder of the dataset")
        made.add_argument("--split", nargs="+", choices=splits, default=splits[:2], help=text)
    else:
        text = "name of the split, such as train or val"
        made.add_argument("--split", nargs=1, required=True, help=text)
    made.add_argument("--out", required=True, help="folder for the records")
    made.add_argument(
        "--shards", type=int, help="number of files; default: one per 128 images, at least 8"
    )
    made.add_argument("--runner", help="an Apache Beam runner; it takes all further flags")
    return made


def parse(made: command_line.Parser) -> Any:
    """Returns the flags; `beam_flags` are the words that the parser does not know."""
    made.complete()
    options, options.beam_flags = made.parse_known_args()
    if options.beam_flags and not options.runner:
        made.error(f"unrecognized arguments: {' '.join(options.beam_flags)}")
    return options
