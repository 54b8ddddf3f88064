"""The command `kmax`: one verb, and one module here, for each program.

A verb's module has `parse`, which returns its flags, and `main`, which runs them. It imports what
takes long inside `main`, so that `--help` and mistakes are answered at once.
"""

import gc
import importlib
import os
import sys
from collections.abc import Sequence

from kmax_tf import command_line, errors

VERBS = {
    "prepare": "make records of a dataset: kmax prepare FORMAT",
    "validate": "list every problem of a dataset",
    "plan": "plan the training from dataset statistics",
    "train": "train an experiment",
    "evaluate": "evaluate the checkpoints of a run",
    "report": "rewrite the report of a run, or compare two runs",
    "export": "export a run as a SavedModel",
    "predict": "segment images with an export",
    "serve": "serve a page that segments images",
    "submit": "write predictions in the format of a test server",
    "panoptic_quality": "score prediction files",
    "import_checkpoint": "convert weights of other codebases",
    "study": "train variants of an experiment and compare them",
    "describe": "count parameters and multiply-adds of a model",
    "doctor": "check this machine, a run and its records",
}
FORMATS = {
    "mask_folders": "a folder of masks for each image",
    "label_images": "images of instance ids",
    "class_maps": "images of class ids",
    "coco_instances": "COCO instances",
    "coco_format": "COCO panoptic format",
    "coco": "COCO 2017",
    "cityscapes": "Cityscapes",
    "ade20k": "ADE20K",
    "demo": "no input: makes the built-in dataset, panoptic digits",
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs `kmax VERB FLAGS`, or completes it for the shell.

    Args:
        words: verb and flags; None for those of this process.
    """
    if "_ARGCOMPLETE" in os.environ:
        from kmax_tf.commands import _completion

        _completion.complete(_dispatch, [list(VERBS), list(FORMATS)])
    _dispatch(sys.argv[1:] if words is None else words)


def _dispatch(words):
    verb = _choose(words, VERBS, "kmax", "verb")
    program = [verb]
    if verb == "prepare":
        program.append(_choose(words[1:], FORMATS, "kmax prepare", "format"))
    sys.argv = [" ".join(["kmax", *program]), *words[len(program) :]]
    run(".".join(program))


def run(program: str) -> None:
    """Runs a module of this folder, such as "train" or "prepare.coco", with the process's flags."""
    # TensorFlow's import and tracing make a million objects; Python would look at each many times.
    gc.set_threshold(50_000)
    module = importlib.import_module(f"{__name__}.{program}")
    command_line.run(module.main, module.parse)


def _choose(words, choices, program, kind):
    """Returns the first word, one of `choices`; without one, lists them and ends the program."""
    word = words[0] if words else "--help"
    if word in choices:
        return word
    if word in ("--help", "-h"):
        rows = [f"  {name:<18} {what}" for name, what in choices.items()]
        print(f"usage: {program} {kind.upper()} ...\n", *rows, sep="\n")
        print(f"\n{program} {kind.upper()} --help lists the flags.")
        sys.exit()
    near = errors.closest(word, choices)
    hint = f"did you mean {near}?" if near else f"see {program} --help"
    sys.exit(f"error: no {kind} {word!r}; {hint}")
