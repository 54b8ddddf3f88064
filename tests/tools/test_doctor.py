"""The doctor, on tables of versions of machines that are not here, and on this one."""

import argparse
import importlib.metadata

import pytest
import tensorflow as tf
import toy

from kmax_tf.run_folder import checkpoint
from kmax_tf.tools import machine, packages

GOOD = {
    "tensorflow": "2.18.1",
    "tf-keras": "2.18.0",
    "tf-models-official": "2.18.0",
    "hotcoco": "1.3.0",
    "numpy": "2.0.2",
}
SLICE = GOOD | {"tensorflow-tpu": "2.18.0", "libtpu": "2.18.0"}


def whats(problems):
    assert all(problem.remedy and "\n" not in "".join(problem) for problem in problems)
    return [problem.what for problem in problems]


def test_one_minor_version():
    for versions in (GOOD, SLICE):
        assert not packages.check_same_minor(versions)
    for change, what, remedy in (
        ({"tf-keras": "2.20.1"}, "tf_keras 2.20.1", "tf_keras==2.18.*"),
        ({"tf-models-official": "2.19.0"}, "tf-models-official 2.19.0", "official==2.18.*"),
        ({"tensorflow-tpu": "2.20.0"}, "TensorFlow 2.20.0", "==2.20.*"),
    ):
        first, *_ = packages.check_same_minor(GOOD | change)
        assert what in first.what and remedy in first.remedy


def test_conflicts_that_pip_reports():
    report = """\
cityscapesscripts 2.3.0 requires typing, which is not installed.
tensorflow 2.18.1 has requirement numpy<2.1.0,>=1.26.0, but you have numpy 2.4.6.
tensorflow-tpu 2.18.0 has requirement libtpu==2.18.0, but you have libtpu 0.0.52.
kmax-tf 0.1.0 requires hotcoco, which is not installed.
"""
    numpy, libtpu, hotcoco = packages.check_requirements(report)
    assert numpy.what.endswith("but you have numpy 2.4.6")
    assert numpy.remedy == 'pip install "numpy<2.1.0,>=1.26.0"'
    assert libtpu.remedy.startswith('pip install "libtpu==2.18.0" -f https://')
    assert "hotcoco" in hotcoco.what and hotcoco.remedy == "run scripts/setup_venv"
    assert not packages.check_requirements("No broken requirements found.\n")
    [problem] = packages.check_requirements("")  # an environment without pip
    assert "not checked" in problem.what and "-m ensurepip" in problem.remedy


@pytest.mark.parametrize(
    "wheel, libtpu, imports",
    [
        ("2.20.0", "0.0.14", True),  # as tried: these import, those abort
        ("2.20.0", "0.0.30", True),
        ("2.20.0", "0.0.36", False),
        ("2.20.0", "0.0.52", False),
        (None, "0.0.52", True),  # the stock wheel does not load it
    ],
)
def test_libtpu_that_is_too_new_for_the_wheel(wheel, libtpu, imports):
    versions = GOOD | {"libtpu": libtpu} | ({"tensorflow-tpu": wheel} if wheel else {})
    assert (not packages.check_tpu_wheel(versions, [])) == imports


def test_the_stock_wheel_over_the_tpu_wheel():
    assert not packages.check_tpu_wheel(SLICE, [])
    (problem,) = packages.check_tpu_wheel(SLICE, ["tensorflow/libtensorflow_cc.so.2"])
    assert "stock wheel overwrote tensorflow-tpu 2.18.0" in problem.what
    assert "--force-reinstall --no-deps tensorflow-tpu==2.18.0" in problem.remedy


def distribution(folder, name, size):
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"pack/core.so,sha256=x,{size}\npack/text.py,sha256=x,9\n")


def test_files_that_another_distribution_wrote_over(tmp_path, monkeypatch):
    """Two distributions of one package: the last one installed is the one that is there."""
    distribution(tmp_path, "pack-stock", 3)
    distribution(tmp_path, "pack-tpu", 5)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/core.so").write_text("stock"[:3])
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version("pack-tpu") == "1.0"
    assert packages.changed_files("pack-stock") == []
    assert packages.changed_files("pack-tpu") == ["pack/core.so"]
    assert packages.changed_files("pack-none") == []


def devices(seen, wanted="auto", versions=GOOD, nvidia=False, hidden=False):
    return machine.check_devices(
        seen, nvidia=nvidia, wanted=wanted, versions=versions, hidden=hidden
    )


def test_devices():
    assert not devices({"CPU": 1})
    assert not devices({"CPU": 1, "GPU": 2}, "gpu", nvidia=True)
    assert whats(devices({"CPU": 1}, "gpu")) == ["there is no GPU for --device=gpu"]
    (problem,) = devices({"CPU": 1}, nvidia=True)
    assert "tensorflow[and-cuda]==2.18.1" in problem.remedy
    (problem,) = devices({"CPU": 1}, nvidia=True, hidden=True)
    assert "CUDA_VISIBLE_DEVICES" in problem.remedy
    assert not devices({"CPU": 1}, "cpu", nvidia=True)  # is what the user wants
    assert "needs JAX" in devices({"CPU": 1}, "pjrt", nvidia=True)[0].what
    jax = GOOD | {"jax": "0.10.2"}
    (problem,) = devices({"CPU": 1}, "pjrt", jax, nvidia=True)
    assert 'pip install "jax[cuda12]"' in problem.remedy
    assert not devices({"CPU": 1}, "pjrt", jax | {"jax-cuda12-plugin": "0.10.2"}, nvidia=True)
    assert not devices({"CPU": 1}, "pjrt", jax)
    assert not devices({"CPU": 1}, "pjrt:cpu:2", jax, nvidia=True)
    for wanted in ("tpu:coco", "local"):
        assert not devices({"CPU": 1}, wanted, SLICE)
        assert "needs tensorflow-tpu" in devices({"CPU": 1}, wanted)[0].what


def test_a_slice_reads_and_writes_on_gs_alone():
    local = {"run_dir": "runs/coco", "data_dir": "gs://b/records", "initial_checkpoint": ""}
    (problem,) = machine.check_paths("tpu:coco", local)
    assert "run_dir runs/coco is local" in problem.what
    for device in ("auto", "cpu", "gpu", "local"):
        assert not machine.check_paths(device, local)


def test_the_environment_of_a_slice():
    environment = {"TPU_NAME": "coco", "TPU_LOAD_LIBRARY": "0", "TF_USE_LEGACY_KERAS": "1"}
    assert not packages.check_environment("tpu:coco", environment, SLICE)
    for name in environment:
        (problem,) = packages.check_environment("tpu:coco", environment | {name: "x"}, SLICE)
        assert problem.remedy == f"export {name}={environment[name]}"


def test_the_tpu_wheel_on_a_machine_without_tpu():
    """Imported there, it asks the metadata server of a TPU VM for minutes."""
    (problem,) = packages.check_environment("auto", {}, SLICE)
    assert problem.remedy == "export TPU_LOAD_LIBRARY=0"
    assert not packages.check_environment("auto", {"TPU_LOAD_LIBRARY": "0"}, SLICE)
    assert not packages.check_environment("local", {}, SLICE)
    assert not packages.check_environment("auto", {}, GOOD)


def test_run_dir(tmp_path):
    assert machine.check_run_dir(str(tmp_path / "runs/coco")) == ("can be written", [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for below in ("file", "file/run"):
        shown, (problem,) = machine.check_run_dir(str(tmp_path / below))
        assert shown == "is not a folder" and problem.what == f"{tmp_path}/file is a file"
    shown, problems = machine.check_run_dir("/proc/kmax")
    assert shown == "cannot be written" and len(whats(problems)) == 1
    shown, (problem,) = machine.check_run_dir(str(tmp_path / "a[1]"))
    assert "a[1]: TensorFlow cannot read checkpoints" in problem.what
    assert problem.remedy == "choose a name without them"


def test_lost_segments(tiny, records):
    lines, problems = machine.check_segments(toy.of(tiny()), records)
    assert not problems and lines[0].startswith("segments") and "6 images" in lines[0]
    rows = "training_input.TrainingInput.max_segments = 99"
    lines, problems = machine.check_segments(toy.of(tiny(rows)), records)
    assert not lines
    assert whats(problems) == [f"{rows.replace(' =', '')} exceeds the 16 clusters of training"]


def test_weights_to_start_from(tiny, tmp_path):
    """Training would refuse them at once, unless the run has a checkpoint of its own."""
    tiny()
    (tmp_path / "toy.gin").write_text(toy.GIN)
    missing = str(tmp_path / "weights-0")
    options = argparse.Namespace(
        gin_file=str(tmp_path / "toy.gin"),
        gin=[f"experiment.Experiment.initial_checkpoint = {missing!r}"],
        data_dir=None,
        run_dir=str(tmp_path / "run"),
        device="auto",
    )
    _, problems = machine.examine_folders(options)
    (what,) = whats(problems)
    assert what.startswith(f"{missing}: cannot be read")
    weights = tf.train.Checkpoint(model=toy.of(tiny()).build_model())
    checkpoint.save(weights, options.run_dir, 1, keep=1)
    rows, problems = machine.examine_folders(options)
    assert not problems and any("6 images" in row[1] for row in rows)
    options.gin = [f"experiment.Experiment.initial_checkpoint = {options.run_dir!r}"]
    options.run_dir = str(tmp_path / "other")
    assert not machine.examine_folders(options)[1]


def test_the_command(run_script, tmp_path, capsys):
    """On this machine: the rows, and the one problem."""
    with pytest.raises(SystemExit) as ended:
        run_script(
            "doctor.py",
            "--gin_file=gin/experiments/demo.gin",
            f"--data_dir={tmp_path}",
            f"--run_dir={tmp_path / 'run'}",
            "--gin=experiment.Experiment.evaluation_split = 'train'",
        )
    assert ended.value.code == 1  # that of an error is its text
    output = capsys.readouterr().out
    for row in ("Python", "tensorflow", "tf_keras", "hotcoco", "libtpu", "devices", "cores"):
        assert f"\n{row}" in f"\n{output}"
    assert 'no records of split "train"' in output.split("Problems:")[1]
