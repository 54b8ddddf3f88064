"""The traffic of a program, counted by hand."""

from kmax_tf.tools import hlo_traffic

PROGRAM = """HloModule step

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %twice = f32[8]{0} add(%p, %p), metadata={op_name="k_ma_x/res_net/add"}
}

ENTRY %main (a: bf16[2,3], w: f32[10]) -> (f32[10]) {
  %a = bf16[2,3]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[10]{0} parameter(1)
  %conv = bf16[4,3]{1,0} fusion(%a, %w), calls=%f, metadata={op_name="jit/k_ma_x/res_net/Conv2D"}
  %copy.1 = bf16[4,3]{0,1} copy(%conv), metadata={op_name="k_ma_x/res_net/Conv2D"}
  %g = (f32[10], pred[5]) fusion(%copy.1), metadata={op_name="gradient_tape/k_ma_x/pixel_decoder"}
  %first = f32[10]{0} get-tuple-element(%g), index=0
  %new = f32[10]{0} add(%w, %first), metadata={op_name="AdamW/add"}
  %again = f32[5]{0} fusion(%w), metadata={op_name="second_pass/res_net_3/Relu"}
  %loss = f32[] reduce(%copy.1), dimensions={0}
  ROOT %out = (f32[10]{0}) tuple(%new)
}
"""


def test_each_instruction_of_the_entry_counts_for_its_part():
    assert hlo_traffic.by_part(PROGRAM) == {
        "optimizer": (40 + 40 + 40, 0),
        "res net": (24 + 8 * 128 * 2 + 40, 20 + 40),  # a fills one tile
        "pixel decoder": (0, 40 + 5 + 24),
        "copies between layouts": (24 + 24, 0),
        "losses, input, metrics": (4 + 24, 0),
    }


def test_a_size_has_the_padding_of_its_layout():
    # Batch, the second innermost axis, is padded from 2 to 4, and the channels from 64 to 128.
    assert hlo_traffic._size("bf16[2,9,9,64]{3,0,2,1:T(4,128)(2,1)}") == 4 * 9 * 9 * 128 * 2
    pair = "(f32[100]{0:T(256)}, /*index=1*/u8[3,5]{0,1:T(8,128)(4,1)})"
    assert hlo_traffic._size(pair) == 256 * 4 + 8 * 128


def test_the_table_has_gigabytes_and_their_sums():
    lines = hlo_traffic.table({"a": (10**9, 2 * 10**9), "b": (5 * 10**8, 0)}).splitlines()
    assert lines[2:] == [
        "| a | 1.00 | 2.00 | 3.00 |",
        "| b | 0.50 | 0.00 | 0.50 |",
        "| all | 1.50 | 2.00 | 3.50 |",
    ]
