"""The input: records in an order of each epoch > share of a host > decode > augment > batch.

Random numbers are stateless, so the position is a step number: an input that starts at step n
gives what one from the beginning gives after n batches. It has no Python operation, as on a slice
it runs in servers without Python.
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from kmax_tf.data.datasets import Dataset
from kmax_tf.data.records import corrupt
from kmax_tf.data.records.reader import Records, count
from kmax_tf.data.transforms import copy_paste, device, geometry, host
from kmax_tf.data.transforms.targets import class_indices
from kmax_tf.errors import InputError

ENDLESS = 2**31  # epochs
FILES_AT_ONCE = 16
PLACEMENTS = ("host", "device")


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """How training examples are made; every field differs between datasets or recipes."""

    size: tuple[int, int]  # height, width of the crop in pixels
    augment: bool = True  # False: every image as the evaluation sees it
    placement: str = "host"  # "device": decoded on the host, augmented in the training step
    decoded_size: tuple[int, int] | None = None  # of "device": what the host sends; `size` if None
    resize_to_crop: bool = True  # into `size`, before the random scale
    scales: tuple[float, ...] = (1.0,)  # of the random scale
    color: float | None = None  # magnitude scale of the auto-augment policy; None: none
    flip: bool = True
    paste_scales: tuple[float, ...] = ()  # of the image for copy-paste; empty: no copy-paste
    max_segments: int = 128  # rows of the targets, at most the number of clusters
    small_thing_area: int = 0  # pixels of the crop, from which a thing is not small
    small_thing_weight: float = 1.0  # weight of small things in the semantic loss
    shuffle_buffer: int = 1000  # records
    skip_corrupt: bool = False  # False: a corrupt record ends training

    def __post_init__(self):
        if self.placement not in PLACEMENTS:
            raise InputError(f'placement "{self.placement}" is none of {", ".join(PLACEMENTS)}')
        if self.placement == "device" and not self.augment:
            raise InputError(
                'placement "device" augments; bind TrainingInput.placement to "host" where'
                " TrainingInput.augment is False"
            )

    @property
    def max_decoded_size(self) -> tuple[int, int]:
        """Height and width that the host sends to the device; larger images are fitted into it."""
        return self.decoded_size or self.size

    def fitted(self, shape: tf.Tensor) -> tf.Tensor:
        """The size of an image of `shape`, int32 (height, width), before the random scale."""
        return geometry.fit(shape, self.size, self.size) if self.resize_to_crop else shape

    @property
    def pairs(self) -> bool:
        """Whether an example is made of two records."""
        return bool(self.augment and self.paste_scales and self.placement == "host")

    @property
    def target_options(self) -> dict:
        """What `make_targets` needs of these."""
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
    """Endless batches for one host.

    Where the placement is "host", of (image float32 [batch, height, width, 3], `Targets`), else of
    `device.Decoded`, of which `device.examples` makes the same.

    Arguments:
      records: every host reads all of them, since shards hold unequal numbers of examples. So all
        hosts share one epoch, whose order does not depend on their number.
      stride: the model's output stride, at which the targets are.
      batch_size: images a host and step, in batches of batch_size / num_replicas.
      start_step: the number of steps done before.
      service: address of a tf.data service that makes the batches; "" for this host. With one
        worker their order is the same, with more of them each makes every n-th epoch.
    """
    start = start_step * batch_size * num_hosts
    ordered = ordered_records(
        records, options, seed=seed, start=start, host_index=host_index, num_hosts=num_hosts
    )

    def example(index, *serialized):
        return training_example(
            serialized, records.parse, dataset, options, stride=stride, seed=tf.stack([seed, index])
        )

    examples = ordered.map(example, tf.data.AUTOTUNE, deterministic=True)
    batches = examples.batch(batch_size // num_replicas, drop_remainder=True)
    if service:
        policy = tf.data.experimental.service.ShardingPolicy.DYNAMIC
        batches = batches.apply(tf.data.experimental.service.distribute(policy, service))
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
    """The host's `Records` from position `start` of the endless order of all hosts.

    Yields (position int64, record), and where the host pastes one more record, of another order.
    The order is one of `seed` and of the global seed, see `runtime.set_seed`.
    """
    num_examples = count(records)

    def ordered(number):
        order = tf.random.experimental.stateless_shuffle(tf.constant(records.paths), [seed, number])
        serialized = tf.data.Dataset.from_tensor_slices(order).interleave(
            lambda path: corrupt.read(path, options.skip_corrupt), cycle_length=FILES_AT_ONCE
        )
        serialized = serialized.shuffle(
            options.shuffle_buffer, seed=seed + number, reshuffle_each_iteration=False
        )
        return corrupt.assert_count(serialized, num_examples, options.skip_corrupt)

    def epoch(number):
        begin = number * num_examples
        first = tf.maximum(begin, start)
        first += (host_index - first) % num_hosts
        # The second order of an epoch has a negative number, which no epoch has.
        orders = (ordered(number), ordered(-1 - number)) if options.pairs else (ordered(number),)
        mine = tf.data.Dataset.zip(orders).skip(first - begin).shard(num_hosts, 0)
        return mine.enumerate().map(lambda i, serialized: (first + i * num_hosts, *serialized))

    return tf.data.Dataset.range(start // num_examples, ENDLESS).flat_map(epoch)


def step_examples(
    options: TrainingInput, dataset: Dataset, stride: int, compiled: bool
) -> Callable:
    """What the training step does first: a batch's parts -> (image, `Targets`) of one replica.

    `compiled`: by XLA, where the step itself is not.
    """
    if options.placement == "host":
        return lambda image, targets: (image, targets)

    def examples(*parts):
        return device.examples(device.Decoded(*parts), options, dataset.num_things, stride)

    return tf.function(examples, jit_compile=True) if compiled else examples


def load(
    record: tf.Tensor,
    parse: Callable,
    dataset: Dataset,
    options: TrainingInput,
    pasted_stuff: tf.Tensor,
) -> tuple[geometry.Sample, copy_paste.Segments, tf.Tensor]:
    """Reads a record, a string scalar: uint8 [h, w, 3] with its map as a `Sample`.

    Returns also its `Segments`, and whether the record was intact, a bool scalar.
    `pasted_stuff`: bool [num_classes], of `copy_paste.draw_stuff`.
    """
    example, intact = (
        corrupt.parse_or_blank(record, parse) if options.skip_corrupt else (parse(record), True)
    )
    classes = tf.where(example.is_crowd, -1, class_indices(dataset, example.category_id))
    segment_map, segments = copy_paste.number_segments(
        example.segment_map, classes, dataset.num_things, pasted_stuff
    )
    return geometry.Sample(example.image, segment_map), segments, intact


def draw(
    seed: tf.Tensor, dataset: Dataset, options: TrainingInput
) -> tuple[geometry.AugmentParams, geometry.AugmentParams, tf.Tensor]:
    """All random numbers of an example, by `seed`, an integer [2].

    Returns:
        The `AugmentParams` of its image; those of the pasted image (in the device placement: of
        this image, pasted onto another); and the `draw_stuff` of the pasted one.
    """
    # The first of these seeds are those that `geometry.draw` splits `seed` into.
    *_, other_seed, stuff_seed = tf.unstack(tf.random.split(seed, 7), num=7)
    own = geometry.draw(seed, options.scales)
    other = geometry.draw(other_seed, options.paste_scales or options.scales)
    own, other = (d._replace(flip=d.flip & options.flip) for d in (own, other))
    return own, other, copy_paste.draw_stuff(stuff_seed, dataset.num_classes)


def training_example(
    records: Sequence[tf.Tensor],
    parse: Callable,
    dataset: Dataset,
    options: TrainingInput,
    *,
    stride: int,
    seed: tf.Tensor,
) -> tuple:
    """One element of `training_input`: image float32 [height, width, 3], `Targets`; or `Decoded`.

    Arguments:
      records: the record, a string scalar, and one more where the host pastes.
      parse: of the records, see records.py.
      seed: integer [2].
    """
    own, other, stuff = draw(seed, dataset, options)
    sample, segments, intact = load(records[0], parse, dataset, options, stuff)
    if options.placement == "device":
        draws = (own, other) if options.paste_scales else (own,)
        return _decoded(sample, segments, draws, intact, options)
    loaded = [(sample, segments)]
    loaded += [load(record, parse, dataset, options, stuff)[:2] for record in records[1:]]
    image, targets = host.example(loaded, (own, other), options, dataset.num_things, stride)
    weight = targets.semantic_weight * tf.cast(intact, tf.float32)
    return image, targets._replace(semantic_weight=weight)


def _decoded(sample, segments, draws, intact, options):
    """What the host sends where the device augments."""
    decoded_size = options.max_decoded_size
    shape = tf.shape(sample.segment_map)
    fitted = options.fitted(shape)
    stored = tf.where(
        tf.reduce_any(shape > decoded_size), geometry.fit(shape, decoded_size, decoded_size), shape
    )
    image, segment_map = host.resize(sample, stored)
    margin = tf.stack([tf.zeros([2], tf.int32), decoded_size - stored], axis=1)
    image = tf.pad(tf.cast(tf.round(image), tf.uint8), tf.concat([margin, [[0, 0]]], axis=0))
    return device.Decoded(
        image=tf.ensure_shape(image, [*decoded_size, 3]),
        segment_map=tf.ensure_shape(tf.pad(segment_map, margin), decoded_size),
        segments=segments,
        size=stored,
        drawn=tf.nest.map_structure(
            lambda *roles: tf.stack(roles),
            *(device.PlacedParams(geometry.locate(fitted, d, options.size), d) for d in draws),
        ),
        intact=tf.convert_to_tensor(intact),
    )
