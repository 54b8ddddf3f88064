"""Reports of the TPU compiler."""

import types

import pytest

from kmax_tf.errors import InputError
from kmax_tf.tools import hlo_traffic, tpu_compile, tpu_report

GB = 10**9


@pytest.fixture
def compiler(monkeypatch):
    """Lets `tpu_compile` answer with given figures, without tracing the step."""

    def answer(compiled, recompute=()):
        def make_trainer(experiment, strategy):
            model = types.SimpleNamespace(recompute=recompute)
            return types.SimpleNamespace(experiment=experiment, model=model)

        def compile_for_tpu(hlo, accelerator, replicas):
            if isinstance(compiled, Exception):
                raise compiled
            return compiled

        monkeypatch.setattr(tpu_report.tpu_compile, "compile_for_tpu", compile_for_tpu)
        monkeypatch.setattr(tpu_report, "make_trainer", make_trainer)
        monkeypatch.setattr(tpu_report.replica_program, "training_step", lambda trainer: (0, 0))
        monkeypatch.setattr(tpu_report.replica_program, "lower", lambda step, specs: b"")

    return answer


def compiled(**figures):
    given = {"needed": 8 * GB, "flops": 1e12, "bytes_accessed": 9e10, "estimated_seconds": 0.5}
    given["program"] = ""
    return tpu_compile.Compiled(arguments=1, outputs=1, temporaries=1, **(given | figures))


def test_times_by_the_roofline_of_the_chip(tiny, compiler):
    experiment = tiny("experiment.Experiment.batch_size=64", "experiment.Experiment.steps=3600")
    compiler(compiled(bytes_accessed=8.19e10))
    found = tpu_report.report(experiment, "v5e-16")
    assert (found["fits"], found["replicas"], found["images_per_replica"]) == (True, 16, 4)
    # 81.9 GB at 819 GB/s take longer than 1 TFLOP at 197 TFLOP/s.
    assert found["roofline_seconds"] == pytest.approx(0.1)
    assert found["estimated_seconds"] is None  # the compiler's figure for a v5e is nonsense
    assert found["images_per_second"] == pytest.approx(640)
    assert found["hours"] == pytest.approx(0.1)
    text = tpu_report.text(found)
    assert text.startswith("fits: v5e-16, 16 replicas x 4 images")
    assert "at least 0.1000 s by the roofline" in text and "none that can be trusted" in text
    assert "at most 640 images/s, and at least 0.1 hours" in text


def test_the_loop_over_micro_batches_counts_as_often_as_it_runs(tiny, compiler):
    entry = """
ENTRY %main (w: f32[1000]) -> f32[1000] {
  %w = f32[1000]{0} parameter(0)
  ROOT %new = f32[1000]{0} add(%w, %w), metadata={op_name="AdamW/add"}
}
"""
    bindings = ["experiment.Experiment.batch_size=64", "experiment.Experiment.accumulation=2"]
    compiler(compiled(bytes_accessed=9e10 + 12_000, program=entry))
    found = tpu_report.report(tiny(*bindings), "v3-16")
    assert (found["images_per_replica"], found["flops"]) == (4, 2e12)
    assert found["bytes_accessed"] == 2 * 9e10 + 12_000
    assert found["roofline_seconds"] == pytest.approx(0.4)
    assert found["estimated_seconds"] is None  # that counts the loop once, too


def test_a_v3_is_estimated_by_its_compiler(tiny, compiler):
    compiler(compiled())
    found = tpu_report.report(tiny("experiment.Experiment.batch_size=64"), "v3-32")
    assert found["roofline_seconds"] == pytest.approx(0.2)  # 90 GB at 450 GB/s
    assert found["estimated_seconds"] == 0.5
    assert found["images_per_second"] == pytest.approx(128)


def test_what_does_not_fit_comes_with_what_may_make_it_fit(tiny, compiler):
    bindings = ["experiment.Experiment.batch_size=64"]
    compiler(compiled(needed=20 * GB))
    text = tpu_report.text(tpu_report.report(tiny(*bindings), "v5e-16"))
    assert text.startswith("does not fit: v5e-16")
    remedies = ["precision = 'mixed_bfloat16'", "recompute = ['pixel_encoder']"]
    for remedy in (*remedies, "accumulation = 2", "--topology=v5e-32"):
        assert remedy in text

    bindings = ["experiment.Experiment.batch_size=16"]
    bindings.append("experiment.Experiment.precision='mixed_bfloat16'")
    error = tpu_compile.OutOfMemory("RESOURCE_EXHAUSTED: Used 20.1G of 15.7G hbm.\nmore")
    compiler(error, recompute=["pixel_encoder"])
    found = tpu_report.report(tiny(*bindings), "v5e-16")
    assert "may make it fit: a chip with more memory" in tpu_report.text(found)
    assert tpu_report.cells(found) == ["v5e-16", "16 x 1", "no", "20.1G of 15.7G"]


def test_a_program_that_jax_cannot_read_keeps_its_figures():
    """Else an hour of compilation for a v6e was in vain."""
    errors = pytest.importorskip("jax.errors")

    def refuse():
        raise errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands")

    assert tpu_compile._text(types.SimpleNamespace(hlo_modules=refuse)) == ""
    assert hlo_traffic.by_part("") == {}


def test_cells_are_those_of_the_head(tiny, compiler):
    compiler(compiled())
    found = tpu_report.report(tiny("experiment.Experiment.batch_size=64"), "v6e-16")
    assert len(tpu_report.cells(found)) == len(tpu_report.COLUMNS) - 1
    assert tpu_report.cells(found)[:4] == ["v6e-16", "16 x 4", "yes", "8.00 of 34.4"]


def test_a_batch_that_does_not_divide_says_what_would(tiny):
    experiment = tiny("experiment.Experiment.batch_size=40")
    with pytest.raises(InputError, match=r"among 16 replicas .* such as --batch_size=32"):
        tpu_report.report(experiment, "v5e-16")
