"""The training input: order of the records > share of a host > decode > augment > batch.

Random numbers are stateless, so a step number is the whole state. An input that starts at step n
continues exactly as one from the beginning does after n batches. It has no Python operation,
because on a TPU slice it runs in servers without Python.
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from kmax_tf.data import autotuning
from kmax_tf.data.datasets import Dataset
from kmax_tf.data.records import corrupt, reader
from kmax_tf.data.records.reader import Records
from kmax_tf.data.transforms import copy_paste, device, geometry, host
from kmax_tf.data.transforms.targets import class_indices
from kmax_tf.errors import InputError, check_size

ENDLESS = 2**31  # epochs
FILES_AT_ONCE = 16
PLACEMENTS = ("host", "device")


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """Options of the training examples; each one differs between datasets or recipes."""

    size: tuple[int, int]  # height, width of the crop in pixels
    augment: bool = True  # False: every image as the evaluation sees it
    placement: str = "host"  # "device": decoded on the host, augmented in the training step
    decoded_size: tuple[int, int] | None = None  # of "device": what the host sends; `size` if None
    # Fit into `size` before the random scale; without it, evaluation enlarges no image either.
    resize_to_crop: bool = True
    scales: tuple[float, ...] = (1.0,)  # of the random scale
    color: float | None = None  # magnitude scale of the auto-augment policy; None: none
    flip: bool = True  # mirror half of the images left to right
    paste_scales: tuple[float, ...] = ()  # of the image for copy-paste; empty: no copy-paste
    max_segments: int = 128  # rows of the targets, at most the number of clusters
    small_thing_area: int = 0  # pixels of the crop; things with fewer are small
    small_thing_weight: float = 1.0  # weight of small things in the semantic loss
    shuffle_buffer: int = 1000  # records
    skip_corrupt: bool = False  # train on past corrupt records; a damaged file ends early

    def __post_init__(self):
        check_size("TrainingInput.size", self.size)
        if self.decoded_size is not None:
            check_size("TrainingInput.decoded_size", self.decoded_size)
        if self.placement not in PLACEMENTS:
            raise InputError(
                f'TrainingInput.placement "{self.placement}" is none of {", ".join(PLACEMENTS)};'
                " choose one of them"
            )
        if self.placement == "device" and not self.augment:
            raise InputError(
                'TrainingInput.placement "device" augments; bind it to "host" if'
                " TrainingInput.augment is False"
            )

    @property
    def max_decoded_size(self) -> tuple[int, int]:
        """Height and width that the host sends to the device; larger images shrink to fit."""
        return self.decoded_size or self.size

    def sent(self, shape: tf.Tensor) -> tf.Tensor:
        """Computes the size in which the host hands on an image of `shape`; int32 [2] in pixels."""
        if self.placement == "host":
            return shape
        most = self.max_decoded_size
        return tf.where(tf.reduce_any(shape > most), geometry.fit(shape, most, most), shape)

    def fitted(self, shape: tf.Tensor) -> tf.Tensor:
        """Computes the size before the random scale of an image of `shape`; int32 [2] in pixels."""
        if self.resize_to_crop:
            return geometry.fit(shape, self.size, self.size)
        return self.sent(shape)

    @property
    def target_options(self) -> dict:
        """The options of `make_targets`."""
        return dict(
            max_segments=self.max_segments,
            small_thing_area=self.small_thing_area,
            small_thing_weight=self.small_thing_weight,
        )


def training_input(
    records: Records,
    dataset: Dataset,
    options: TrainingInput,
    *,
    stride: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    host_index: int = 0,
    num_hosts: int = 1,
    num_replicas: int = 1,
    service: str = "",
) -> tf.data.Dataset:
    """Makes endless batches for one host.

    Args:
        records: every host reads all of them, because shards hold unequal numbers of examples. So
            all hosts share one epoch, whose order does not depend on the number of hosts.
        stride: the model's output stride, at which the targets are.
        batch_size: images of one step on this host, in batches of batch_size / num_replicas.
        start_step: number of steps already done.
        service: address of a tf.data service that makes the batches; "" for this host. One worker
            keeps the order; of n workers each makes every n-th epoch.

    Returns:
        A dataset of (image float32 [batch, height, width, 3], `Targets`) for the placement "host".
        For "device", of `device.Decoded`, from which `device.make_examples` makes the same.
    """
    start = start_step * batch_size * num_hosts
    ordered = ordered_records(
        records, options, seed=seed, start=start, host_index=host_index, num_hosts=num_hosts
    )

    @tf.autograph.experimental.do_not_convert
    def make_example(position, *pair):
        return training_example(
            pair, records.parse, dataset, options, stride=stride, seed=tf.stack([seed, position])
        )

    examples = ordered.map(make_example, tf.data.AUTOTUNE, deterministic=True)
    batches = examples.batch(batch_size // num_replicas, drop_remainder=True)
    if service:
        policy = tf.data.experimental.service.ShardingPolicy.DYNAMIC
        batches = batches.apply(tf.data.experimental.service.distribute(policy, service))
        batches = autotuning.off(batches)  # here; the options above are the servers'
    return batches.prefetch(1)


def ordered_records(
    records: Records,
    options: TrainingInput,
    *,
    seed: int,
    start: int = 0,
    host_index: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Orders the records of one host, from position `start` of the endless order of all hosts.

    The order depends on `seed` and on the global seed, see `runtime.set_seed`.

    Returns:
        A dataset of (position, record): int64 and string scalars. If the host pastes, a record to
        paste follows, from another order.
    """
    num_examples = reader.count(records)
    pastes = options.augment and options.paste_scales and options.placement == "host"

    def ordered(number):
        order = tf.random.experimental.stateless_shuffle(tf.constant(records.paths), [seed, number])
        epoch_records = tf.data.Dataset.from_tensor_slices(order).interleave(
            lambda path: corrupt.read(path, options.skip_corrupt), cycle_length=FILES_AT_ONCE
        )
        epoch_records = epoch_records.shuffle(
            options.shuffle_buffer, seed=seed + number, reshuffle_each_iteration=False
        )
        return corrupt.assert_count(epoch_records, num_examples, options.skip_corrupt)

    @tf.autograph.experimental.do_not_convert
    def epoch(number):
        begin = number * num_examples
        first = tf.maximum(begin, start)
        first += (host_index - first) % num_hosts
        # The second order of an epoch has a negative number, which no epoch has.
        orders = (ordered(number), ordered(-1 - number)) if pastes else (ordered(number),)
        share = tf.data.Dataset.zip(orders).skip(first - begin).shard(num_hosts, 0)
        return share.enumerate().map(lambda i, pair: (first + i * num_hosts, *pair))

    epochs = tf.data.Dataset.range(start // num_examples, ENDLESS).flat_map(epoch)
    return autotuning.off(epochs)


def step_examples(
    options: TrainingInput, dataset: Dataset, stride: int, compiled: bool
) -> Callable:
    """Returns the function from the parts of a replica's batch to its images and `Targets`.

    `compiled`: compile it by XLA, because the training step itself is not.
    """
    if options.placement == "host":
        return lambda image, targets: (image, targets)

    def examples(*parts):
        return device.make_examples(device.Decoded(*parts), options, dataset.num_things, stride)

    return tf.function(examples, jit_compile=True) if compiled else examples


def load_image(
    record: tf.Tensor, parse: Callable, dataset: Dataset, options: TrainingInput
) -> tuple[geometry.Sample, tf.Tensor, tf.Tensor]:
    """Parses a record.

    Args:
        record: a string scalar.
        parse: maps a record to an `Example`.

    Returns:
        The `Sample`, uint8 [height, width, 3] and int32 [height, width]. The class index of each
        segment, int32 [n], -1 for crowd. A bool scalar that is False for a corrupt record.
    """
    example, intact = (
        corrupt.parse_or_blank(record, parse) if options.skip_corrupt else (parse(record), True)
    )
    classes = tf.where(example.is_crowd, -1, class_indices(dataset, example.category_id))
    return geometry.Sample(example.image, example.segment_map), classes, intact


def draw_params(
    seed: tf.Tensor, dataset: Dataset, options: TrainingInput
) -> tuple[geometry.AugmentParams, geometry.AugmentParams, tf.Tensor]:
    """Draws all random numbers of an example from `seed`, integers [2].

    Returns:
        The `AugmentParams` of the image; those of the pasted image; and which stuff is pasted, bool
        [num_classes]. The placement "device" pastes this same image onto another.
    """
    # The first five of these seeds are those that `geometry.draw_params` splits `seed` into.
    *_, pasted_seed, stuff_seed = tf.unstack(tf.random.split(seed, 7), num=7)
    image = geometry.draw_params(seed, options.scales)
    pasted = geometry.draw_params(pasted_seed, options.paste_scales or options.scales)
    image, pasted = (p._replace(flip=p.flip & options.flip) for p in (image, pasted))
    return image, pasted, copy_paste.draw_stuff(stuff_seed, dataset.num_classes)


def training_example(
    pair: Sequence[tf.Tensor],
    parse: Callable,
    dataset: Dataset,
    options: TrainingInput,
    *,
    stride: int,
    seed: tf.Tensor,
) -> tuple:
    """Makes one element of `training_input`, without the batch axis.

    Args:
        pair: record of the image and, if the host pastes, of the image to paste; string scalars.
        parse: maps a record to an `Example`.
        seed: integers [2].

    Returns:
        image float32 [height, width, 3] and `Targets`; or `device.Decoded`.
    """
    image_params, pasted_params, stuff = draw_params(seed, dataset, options)
    sample, classes, intact = load_image(pair[0], parse, dataset, options)
    if options.placement == "device":
        ids, segments = copy_paste.number_segments(
            sample.segment_map, classes, dataset.num_things, stuff
        )
        roles = (image_params, pasted_params) if options.paste_scales else (image_params,)
        return _pad_decoded(sample._replace(segment_map=ids), segments, roles, intact, options)
    samples = [(sample, classes)]
    samples += [load_image(record, parse, dataset, options)[:2] for record in pair[1:]]
    params = image_params, pasted_params
    image, targets = host.make_example(samples, params, stuff, options, dataset.num_things, stride)
    weight = targets.semantic_weight * tf.cast(intact, tf.float32)
    return image, targets._replace(semantic_weight=weight)


def _pad_decoded(sample, segments, roles, intact, options):
    """The `Decoded` of an image whose `AugmentParams`, one for each role, are `roles`."""
    decoded_size = options.max_decoded_size
    shape = tf.shape(sample.segment_map)
    fitted, stored = options.fitted(shape), options.sent(shape)
    image, segment_map = host.resize(sample, stored)
    margin = tf.stack([tf.zeros([2], tf.int32), decoded_size - stored], axis=1)
    image = tf.pad(tf.cast(tf.round(image), tf.uint8), tf.concat([margin, [[0, 0]]], axis=0))
    return device.Decoded(
        image=tf.ensure_shape(image, [*decoded_size, 3]),
        segment_map=tf.ensure_shape(tf.pad(segment_map, margin), decoded_size),
        segments=segments,
        size=stored,
        params=tf.nest.map_structure(
            lambda *values: tf.stack(values),
            *(device.PlacedParams(geometry.locate(fitted, p, options.size), p) for p in roles),
        ),
        intact=tf.convert_to_tensor(intact),
    )
