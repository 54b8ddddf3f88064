"""The dataset of COCO's size is a dataset of COCO, and each program runs on it."""

import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep import coco
from kmax_tf.data import datasets
from kmax_tf.tools import benchmark_scale

ROOT = pathlib.Path(__file__).parents[2]


def test_the_dataset_is_one_of_coco_and_takes_the_disk_of_its_pictures(tmp_path):
    source = pathlib.Path(benchmark_scale.draw(str(tmp_path / "source")))
    benchmark_scale.make(str(tmp_path / "coco"), str(source), 100)
    items, dataset = coco.read(str(tmp_path / "coco"), "train")
    assert dataset == datasets.load("coco") and len(items) == 100
    assert len({item.annotation.image_id for item in items}) == 100
    for item in items[:10] + items[-10:]:
        assert Image.open(item.image_path).size == (640, 480)
        rgb = np.asarray(Image.open(item.label_path), int)
        ids, areas = np.unique(rgb @ [1, 256, 65536], return_counts=True)
        listed = {segment.id: segment.area for segment in item.annotation.segments}
        assert listed == dict(zip(ids.tolist(), areas.tolist()))
    assert len(coco.read(str(tmp_path / "coco"), "val")[0]) == 4
    for folder in ("train2017", "annotations/panoptic_train2017"):
        inodes = [path.stat().st_ino for path in (tmp_path / "coco" / folder).iterdir()]
        assert len(inodes) == 100 and len(set(inodes)) == benchmark_scale.PICTURES


def test_costs_are_of_all_processes_and_disk_counts_links_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    held = "held = bytearray(b'x') * 10**8; "
    child = f"{held}import time; time.sleep(2)"
    code = f"{held}import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    stage = benchmark_scale.Stage("", shlex.join(["python", "-c", code, child]), "", "")
    cost = benchmark_scale.measure(stage, str(tmp_path))
    assert cost.seconds > 2 and 0 < cost.cpu_seconds < cost.seconds
    assert 2e8 < cost.memory < 3e8
    assert benchmark_scale.size(str(tmp_path)) == 1000


@pytest.mark.slow
@pytest.mark.long
def test_script(tmp_path):
    command = [sys.executable, ROOT / "scripts/benchmark_scale.py", "--images=200"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, check=True)
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) (?:s|min) \|", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == [stage.name for stage in benchmark_scale.STAGES]
    assert "200 images, 2400 segments, 133 classes" in done.stdout
    assert not list(tmp_path.iterdir())
