"""The doctor, on tables of versions of machines that are not here, and on this one."""

import importlib.metadata
import subprocess
import sys

import pytest

from kmax_tf.tools import doctor

PYTHON = ">=3.10,<3.13"
REQUIREMENTS = [
    "tensorflow>=2.18,<2.21",
    "tf-models-official>=2.18,<2.21",
    "tf_keras>=2.18,<2.21",
    "hotcoco==1.3.*",
]
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


@pytest.mark.parametrize(
    "version, fits", [("3.9.18", 0), ("3.10.0", 1), ("3.12.9", 1), ("3.13.1", 0)]
)
def test_python(version, fits):
    assert len(doctor.check_python(version, PYTHON)) == 1 - fits


def test_the_requirements_are_those_of_setup_cfg():
    python, requirements = doctor.supported()
    assert python == PYTHON
    assert set(REQUIREMENTS) < set(requirements)


@pytest.mark.parametrize("versions", [GOOD, SLICE])
def test_versions_that_fit(versions):
    assert not doctor.check_versions(versions, REQUIREMENTS)


@pytest.mark.parametrize(
    "change, what, remedy",
    [
        ({"tf-keras": "2.20.1"}, "tf_keras 2.20.1", "tf_keras==2.18.*"),
        ({"tf-models-official": "2.19.0"}, "tf-models-official 2.19.0", "official==2.18.*"),
        ({"tensorflow-tpu": "2.20.0"}, "beside TensorFlow 2.20.0", "==2.20.*"),
        ({"hotcoco": "1.2.0"}, "hotcoco 1.2.0 is not ==1.3.*", "hotcoco==1.3.*"),
        ({"tf-keras": ""}, "tf_keras is not installed", 'pip install "tf_keras<'),
        ({"tensorflow": ""}, "tensorflow is not installed", "setup_venv"),
    ],
)
def test_versions_that_do_not_fit(change, what, remedy):
    first, *_ = doctor.check_versions({**GOOD, **change}, REQUIREMENTS)
    assert what in first.what and remedy in first.remedy


def test_a_package_that_asks_for_another_version():
    asks = {"tensorflow": ["numpy<2.1.0,>=1.26.0", "keras>=3.5", "x>1; extra == 'and-cuda'"]}
    assert not doctor.check_conflicts(GOOD | {"x": "0.1"}, asks)
    (problem,) = doctor.check_conflicts(GOOD | {"numpy": "2.4.6"}, asks)
    assert problem.what.startswith("tensorflow asks for numpy") and "2.4.6" in problem.what
    assert problem.remedy == 'pip install "numpy<2.1.0,>=1.26.0"'


@pytest.mark.parametrize(
    "wheel, libtpu, stands",
    [
        ("2.20.0", "0.0.14", True),  # as tried: these import, those abort
        ("2.20.0", "0.0.30", True),
        ("2.20.0", "0.0.36", False),
        ("2.20.0", "0.0.52", False),
        (None, "0.0.52", True),  # the stock wheel does not load it
    ],
)
def test_libtpu_newer_than_the_wheel_stands(wheel, libtpu, stands):
    versions = GOOD | {"libtpu": libtpu} | ({"tensorflow-tpu": wheel} if wheel else {})
    assert (not doctor.check_tpu_wheel(versions, [])) == stands


def test_the_stock_wheel_over_the_tpu_wheel():
    assert not doctor.check_tpu_wheel(SLICE, [])
    (problem,) = doctor.check_tpu_wheel(SLICE, ["tensorflow/libtensorflow_cc.so.2"])
    assert "stock wheel lies over tensorflow-tpu 2.18.0" in problem.what
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
    assert doctor.changed_files("pack-stock") == []
    assert doctor.changed_files("pack-tpu") == ["pack/core.so"]
    assert doctor.changed_files("pack-none") == []


def devices(seen, wanted="auto", versions=GOOD, **machine):
    machine = {"nvidia": False, **machine}
    return doctor.check_devices(seen, wanted=wanted, versions=versions, **machine)


def test_devices():
    assert not devices({"CPU": 1})
    assert not devices({"CPU": 1, "GPU": 2}, "gpu", nvidia=True)
    assert whats(devices({"CPU": 1}, "gpu")) == ["there is no GPU for --device=gpu"]
    (problem,) = devices({"CPU": 1}, nvidia=True)
    assert "tensorflow[and-cuda]==2.18.1" in problem.remedy
    (problem,) = devices({"CPU": 1}, nvidia=True, hidden=True)
    assert "CUDA_VISIBLE_DEVICES" in problem.remedy
    for wanted in ("tpu:coco", "local"):
        assert not devices({"CPU": 1}, wanted, SLICE)
        assert "stock" in devices({"CPU": 1}, wanted)[0].what


def test_a_slice_reads_and_writes_on_gs_alone():
    local = {"run_dir": "runs/coco", "data_dir": "gs://b/records", "initial_checkpoint": ""}
    (problem,) = doctor.check_paths("tpu:coco", local)
    assert "run_dir runs/coco is local" in problem.what
    for device in ("auto", "cpu", "gpu", "local"):
        assert not doctor.check_paths(device, local)


def test_the_environment_of_a_slice():
    environment = {"TPU_NAME": "coco", "TPU_LOAD_LIBRARY": "0", "TF_USE_LEGACY_KERAS": "1"}
    assert not doctor.check_environment("tpu:coco", environment, SLICE)
    for name in environment:
        (problem,) = doctor.check_environment("tpu:coco", environment | {name: "x"}, SLICE)
        assert problem.remedy == f"export {name}={environment[name]}"


def test_the_tpu_wheel_on_a_machine_without_tpu():
    """Imported there, it asks the metadata server of a TPU VM for minutes."""
    (problem,) = doctor.check_environment("auto", {}, SLICE)
    assert problem.remedy == "export TPU_LOAD_LIBRARY=0"
    assert not doctor.check_environment("auto", {"TPU_LOAD_LIBRARY": "0"}, SLICE)
    assert not doctor.check_environment("local", {}, SLICE)
    assert not doctor.check_environment("auto", {}, GOOD)


def test_run_dir(tmp_path):
    assert doctor.check_run_dir(str(tmp_path / "runs/coco")) == ("can be written", [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    shown, problems = doctor.check_run_dir("/proc/kmax")
    assert shown == "cannot be written" and len(whats(problems)) == 1


def run(*words):
    program = [sys.executable, "scripts/doctor.py", *words]
    done = subprocess.run(program, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_the_command(tmp_path):
    """On this machine: the rows are there, and the one thing that does not fit."""
    status, output = run(
        "--gin_file=gin/experiments/demo.gin",
        f"--data_dir={tmp_path}",
        f"--run_dir={tmp_path / 'run'}",
        "--gin=experiment.Experiment.evaluation_split = 'train'",
    )
    assert status == 1
    for row in ("Python", "tensorflow", "tf_keras", "hotcoco", "libtpu", "devices", "cores"):
        assert f"\n{row}" in f"\n{output}"
    assert 'no records of split "train"' in output.split("Does not fit:")[1]
