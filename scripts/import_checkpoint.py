"""Makes a checkpoint of ours from weights of another code base.

scripts/import_checkpoint.py --gin_file=gin/experiments/coco_resnet50.gin \
    --kind=deeplab2 --source=downloads/kmax_resnet50_coco_train/ckpt-150000 --out=runs/official

Kinds:
    deeplab2            a TensorFlow checkpoint of the official code, all of the model
    pytorch             a .pth or safetensors file of the PyTorch port, all of the model
    imagenet_deeplab2   the encoder alone, from an official ImageNet checkpoint, ConvNeXt too
    imagenet_keras      the encoder alone, from ConvNeXt weights (.h5) of tf_keras.applications
    imagenet_torch      the encoder alone, ResNet-50 or ConvNeXt of torchvision or timm

`--out` is a run folder, which scripts/evaluate.py --run_dir takes, or the prefix of one checkpoint,
NAME-NUMBER. A model for classes of your own starts from --classes, the label set of the source.
"""

from absl import flags

from kmax_tf import config, runtime
from kmax_tf.data import datasets
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.importers import importer, names, output, readers

GIN_FILE = flags.DEFINE_string("gin_file", None, "The experiment.", required=True)
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the file's.")
SOURCE = flags.DEFINE_string("source", None, "The weights: a file, or prefix.", required=True)
KIND = flags.DEFINE_string("kind", None, f"One of {', '.join(names.kinds())}.", required=True)
OUT = flags.DEFINE_string("out", None, "A run folder, or NAME-NUMBER.", required=True)
CLASSES = flags.DEFINE_string("classes", None, "The source's dataset, if it is another one.")


def main():
    name_map = names.load(KIND.value)
    output.check(OUT.value)
    experiment = config.load(Experiment, GIN_FILE.value, GIN.value)
    theirs = datasets.load(CLASSES.value) if CLASSES.value else None
    source = readers.read(SOURCE.value, lambda name: not name_map.ignores(name))
    runtime.set_seed(experiment.seed)
    runtime.set_precision(experiment.precision)
    # Variables are of the same shapes whatever the size of the image, so a small one will do.
    model = experiment.model(experiment.dataset.num_classes).create_variables(65, 97)
    try:
        report = importer.import_weights(model, KIND.value, source, experiment.dataset, theirs)
    except InputError as error:
        raise InputError(f"{SOURCE.value}: {error}") from None

    path = output.write(model, OUT.value)
    print(f"wrote {report.assigned} variables of {SOURCE.value} to {path}")
    for what, entries in (
        ("left fresh, being no part of the source", report.fresh_parts),
        ("left fresh in every head, the source lacking the classes", report.fresh_classes),
        ("dropped classes of the source", report.dropped_classes),
    ):
        if entries:
            print(f"{what}: {', '.join(entries)}")


if __name__ == "__main__":
    runtime.run(main)
