"""The wheel alone, in a clean environment: every step, by command and from Python."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = """
import numpy as np
import kmax_tf

kmax_tf.train("data/records", "python_run", gin_file="tiny.gin", steps=4)
assert kmax_tf.evaluate("python_run")["num_images"] == 3
loaded, exported = kmax_tf.load("run"), kmax_tf.load("export")
image = "data/val/" + sorted(os.listdir("data/val"))[0]
result = loaded.predict(image)
np.testing.assert_array_equal(result.panoptic_map, exported.predict(image).panoptic_map)
assert result.overlay().mode == "RGB"
exported.predict_to_coco("data/val", "python_predictions")
"""
CLIENT = """
import json, pathlib, urllib.request

content = pathlib.Path(sys.argv[2]).read_bytes()
seen = json.load(urllib.request.urlopen(f"{sys.argv[1]}/look?name=image", content))
assert seen["views"][-1]["title"] == "segments", seen
"""


@pytest.fixture
def venv():
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep it
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        yield pathlib.Path(folder)


@pytest.mark.long
@pytest.mark.slow
def test_a_wheel_in_an_empty_folder(tmp_path, venv, tiny_text):
    """It downloads the packages, 2 GB."""
    source = tmp_path / "source"  # a build leaves files, which the next one would pack
    source.mkdir()
    for name in ("kmax_tf", "data_prep", "gin"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}", str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    empty = tmp_path / "empty"
    subprocess.run([venv / "bin/pip", "install", "--quiet", f"{wheel}[onnx,page]"], check=True)
    empty.mkdir()
    (empty / "tiny.gin").write_text(tiny_text.format(records="data/records"))
    alone = os.environ | {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}

    def run(*words):
        done = subprocess.run(words, cwd=empty, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kmax(*words):
        return run(venv / "bin/kmax", *words)

    def python(text, *words):
        return run(venv / "bin/python", "-c", f"import os, sys\n{text}", *words)

    place = python("import kmax_tf; print(kmax_tf.__file__)")
    assert place.startswith(str(venv))
    kmax("prepare", "demo", "--out=data", "--num_train=6", "--num_val=3")
    kmax("train", "--gin_file=tiny.gin", "--run_dir=run", "--steps=50")
    assert "step 50: PQ" in kmax("evaluate", "--run_dir=run", "--once")
    assert "0.000 % of the pixels" in kmax("export", "--run_dir=run", "--out=export", "--onnx")
    assert "3 images, 0 skipped" in kmax("predict", "export", "data/val", "--out=predictions")
    python(PYTHON)
    for folder in ("predictions", "python_predictions"):
        assert len(list((empty / folder / "overlays").iterdir())) == 3

    serve = [venv / "bin/kmax", "serve", "export", "--port=0"]
    with subprocess.Popen(serve, cwd=empty, env=alone, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().strip()
        try:
            python(CLIENT, address, str(next((empty / "data/val").iterdir())))
        finally:
            server.send_signal(signal.SIGTERM)
