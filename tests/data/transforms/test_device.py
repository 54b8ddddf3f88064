"""The device placement makes the pictures and targets of the host placement."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data import training_input
from kmax_tf.data.records import example
from kmax_tf.data.transforms import color, copy_paste, device, geometry, host
from kmax_tf.data.transforms.targets import make_targets

OPTIONS = training_input.TrainingInput(
    size=(45, 61),
    scales=(0.5, 0.8, 1.0, 1.7),
    paste_scales=(0.3, 0.85),
    color=0.6,
    max_segments=16,
    small_thing_area=60,
    small_thing_weight=3.0,
    placement="device",
    decoded_size=(56, 56),
)
STRIDE = 4


def outcome(params):
    """The sub-policy and which of its operations are applied."""
    policy = int(params.policy)
    applied = [c < p for c, (_, p, _) in zip(params.chance.numpy(), color.POLICY[policy])]
    return policy, *map(bool, applied)


@pytest.fixture(scope="module")
def batch(made):
    """For each outcome of the color policy one image of its own size, and the seed of it."""
    seeds = {}
    for number in range(400):
        seed = tf.constant([5, number], tf.int64)
        params, *_ = training_input.draw_params(seed, made.dataset, OPTIONS)
        seeds.setdefault(outcome(params), seed)
    assert len(seeds) == 18
    sizes = [(40 + n % 17, 56 - n) for n in range(17)] + [(70, 50)]  # the last over decoded_size
    return [(made.record(n, *size), s) for n, (size, s) in enumerate(zip(sizes, seeds.values()))]


def numbered(record, dataset, options, stuff):
    sample, classes, _ = training_input.load_image(record, example.parse, dataset, options)
    ids, segments = copy_paste.number_segments(
        sample.segment_map, classes, dataset.num_things, stuff
    )
    return sample._replace(segment_map=ids), segments


def on_host(batch, dataset, options):
    """The examples as the host augments them, where each is pasted onto the next."""
    samples = []
    for record, seed in batch:
        *params, stuff = training_input.draw_params(seed, dataset, options)
        sample, segments = numbered(record, dataset, options, stuff)
        roles = [host.augment(sample, p, options) for p in params]
        samples.append((*roles, segments))
    for number, (sample, _, segments) in enumerate(samples):
        _, before, before_segments = samples[number - 1]
        image, ids, classes = copy_paste.paste(sample, segments, before, before_segments)
        yield (
            image,
            make_targets(
                ids,
                classes,
                num_things=dataset.num_things,
                stride=STRIDE,
                **options.target_options,
            ),
        )


@pytest.mark.xla
def test_host_and_device_agree(batch, made):
    decoded = [
        training_input.training_example(
            (record,), example.parse, made.dataset, OPTIONS, stride=STRIDE, seed=seed
        )
        for record, seed in batch
    ]
    decoded = tf.nest.map_structure(lambda *parts: tf.stack(parts), *decoded)
    compiled = training_input.step_examples(OPTIONS, made.dataset, STRIDE, compiled=True)
    images, targets = compiled(*decoded)
    assert images.shape == [18, *OPTIONS.size, 3] and images.dtype == tf.float32
    resized_twice = 17, 0  # were rounded once more; 17 is pasted onto 0
    params = [training_input.draw_params(seed, made.dataset, OPTIONS) for _, seed in batch]
    gray = []
    for number, (image, expected) in enumerate(on_host(batch, made.dataset, OPTIONS)):
        for ours, theirs in zip([field[number] for field in targets], expected):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{number}")
        difference = np.abs(images[number].numpy() - image.numpy())
        if number in resized_twice:
            assert difference.mean() < 1, number
            continue
        # Rounding moves a value by one; some operations on color make more of that.
        colored = any(outcome(params[number][0])[1:]) or any(outcome(params[number - 1][1])[1:])
        assert np.mean(difference > 0) < 0.02 and np.mean(difference > 1) < 0.01, number
        assert difference.max() <= 1 or colored, number
        gray.append((image.numpy() == geometry.GRAY).mean())
    assert max(gray) > 0.2 and min(gray) < 0.05  # padded and cropped ones


@pytest.mark.xla
def test_without_color_and_paste(batch, made):
    options = training_input.TrainingInput(
        size=(45, 61),
        scales=(0.7, 1.3),
        resize_to_crop=False,
        placement="device",
        decoded_size=(72, 72),
    )
    elements = []
    for record, seed in batch[:4]:
        element = training_input.training_example(
            (record,), example.parse, made.dataset, options, stride=STRIDE, seed=seed
        )
        elements.append(element)
    decoded = tf.nest.map_structure(lambda *parts: tf.stack(parts), *elements)
    images, targets = training_input.step_examples(options, made.dataset, STRIDE, True)(*decoded)
    for number, (record, seed) in enumerate(batch[:4]):
        params, _, stuff = training_input.draw_params(seed, made.dataset, options)
        sample, segments = numbered(record, made.dataset, options, stuff)
        image, ids = host.augment(sample, params, options)
        np.testing.assert_allclose(images[number], image, atol=0.05)
        expected = make_targets(
            ids,
            segments.classes,
            num_things=made.dataset.num_things,
            stride=STRIDE,
            **options.target_options,
        )
        for ours, theirs in zip([field[number] for field in targets], expected):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.xla
def test_an_image_that_is_too_large_to_send_shrinks_as_a_whole(made, batch):
    """Pixels and labels stay together, also where a color operation counts the whole image."""
    options = dataclasses.replace(OPTIONS, resize_to_crop=False, paste_scales=())
    seeds = [seed for _, seed in batch]
    params = [training_input.draw_params(seed, made.dataset, options)[0] for seed in seeds]
    whole = [k for k, p in enumerate(params) if color.needs_whole_image(p)]
    assert len(whole) > 2
    elements, expected = [], []
    for k in whole:
        record = made.record(k, 130, 110)
        arguments = dict(stride=STRIDE, seed=seeds[k])
        elements.append(
            training_input.training_example(
                (record,), example.parse, made.dataset, options, **arguments
            )
        )
        *_, stuff = training_input.draw_params(seeds[k], made.dataset, options)
        sample, _ = numbered(record, made.dataset, options, stuff)
        sent = host.resize(sample, options.sent(tf.constant([130, 110])))
        sent = sent._replace(image=tf.cast(tf.round(sent.image), tf.uint8))
        placed = dataclasses.replace(options, placement="host")
        expected.append(host.augment(sent, params[k], placed))
    decoded = tf.nest.map_structure(lambda *parts: tf.stack(parts), *elements)
    assert decoded.size.numpy().tolist() == [[56, 47]] * len(whole)
    images, _ = training_input.step_examples(options, made.dataset, STRIDE, True)(*decoded)
    for ours, theirs in zip(images, expected, strict=True):
        assert np.mean(np.abs(ours - theirs.image) > 1) < 0.01


def test_products_hold_where_operands_are_bfloat16(monkeypatch):
    """As on a TPU, where a product of float32 cuts its operands to 8 bits."""

    def cut(equation, *operands):
        return einsum(equation, *(tf.cast(tf.cast(x, tf.bfloat16), tf.float32) for x in operands))

    einsum = tf.einsum
    sides = tf.constant(97), tf.constant(131), tf.constant(70)
    weights = device._bilinear(tf.range(97), *sides, 70)
    values = tf.constant(np.random.default_rng(0).uniform(0, 255, [70, 30]), tf.float32)
    exact = tf.matmul(weights, values)
    assert np.abs(cut("yh,hw->yw", weights, values) - exact).max() > 0.5
    monkeypatch.setattr(tf, "einsum", cut)
    assert (
        np.abs(device._product("yh,hw->yw", weights, *device._parts(values)) - exact).max() < 0.02
    )
