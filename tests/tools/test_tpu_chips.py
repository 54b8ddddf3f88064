"""The slices: their names count what Google counts, and libtpu knows them."""

import pytest

from kmax_tf.errors import InputError
from kmax_tf.tools import tpu_chips, tpu_compile

# From cloud.google.com/tpu/docs/v3 to v6e: chips, shape, and devices of a JAX program.
SLICES = {
    "v3-8": (4, "v3:2x2", 8),
    "v3-32": (16, "v3:4x4", 32),
    "v4-8": (4, "v4:2x2x1", 4),
    "v4-32": (16, "v4:2x2x4", 16),
    "v4-128": (64, "v4:4x4x4", 64),
    "v5e-1": (1, "v5e:1x1", 1),
    "v5e-8": (8, "v5e:2x4", 8),
    "v5e-16": (16, "v5e:4x4", 16),
    "v5e-128": (128, "v5e:8x16", 128),
    "v5p-8": (4, "v5p:2x2x1", 4),
    "v5p-16": (8, "v5p:2x2x2", 8),
    "v6e-32": (32, "v6e:4x8", 32),
}


@pytest.mark.parametrize(("name", "facts"), SLICES.items())
def test_a_name_gives_chips_shape_and_replicas(name, facts):
    found = tpu_chips.parse(name)
    assert (found.chips, found.topology, found.replicas) == facts
    assert found.name == name


def test_a_replica_has_its_part_of_the_chip():
    one, joined = tpu_chips.parse("v3-32"), tpu_chips.parse("v4-32")
    assert one.memory == 16 * 2**30 and joined.memory == 32 * 2**30
    assert (one.flops_per_second, one.bytes_per_second) == (61.5e12, 450e9)
    assert (joined.flops_per_second, joined.bytes_per_second) == (275e12, 1228e9)


def test_both_names_of_a_v5e():
    assert tpu_chips.parse("v5litepod-16") == tpu_chips.parse("v5e-16")
    assert tpu_chips.parse("v5e-16").accelerator_type == "v5litepod-16"
    assert tpu_chips.parse("v6e-16").accelerator_type == "v6e-16"


@pytest.mark.parametrize("name", ["v9-16", "v5e", "v5e-12", "v3-3", "v4-0"])
def test_what_is_no_slice_is_refused_with_those_that_are(name):
    with pytest.raises(InputError, match=f"'{name}' is unknown; give one such as v3-32, v4-32"):
        tpu_chips.parse(name)


@pytest.mark.parametrize("name", [*tpu_chips.SIXTEEN_CHIPS, "v4-8", "v5p-8", "v5e-8"])
def test_the_compiler_knows_as_many_devices(name):
    for package in ("jax", "libtpu"):
        pytest.importorskip(package)
    wanted = tpu_chips.parse(name)
    assert len(tpu_compile.devices(wanted)) == wanted.replicas
