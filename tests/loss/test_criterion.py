"""Every loss term, the matching and the gradients equal the official code's numbers."""

import pytest

from kmax_tf.parity import check


@pytest.mark.parametrize("case", ["coco", "coco_sampled", "cityscapes", "ade20k"])
def test_golden(shared, case):
    (result,) = check.check(str(shared / "golden"), "loss", case)
    assert result.passed, result
    assert result.tensors >= 59  # 30 terms, 22 gradients, 7 of the matching
