"""The client of docs/export.md, against a server that speaks TensorFlow Serving's protocol."""

import base64
import http.server
import json
import pathlib
import re
import threading
import urllib.error

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import predict
from kmax_tf.predict import image_sources

PAGE = pathlib.Path(__file__).parents[2] / "docs/export.md"


def answer(signatures, request):
    """What TensorFlow Serving answers in its columnar form, for a signature of one string input.

    As https://www.tensorflow.org/tfx/serving/api_rest has it: {"b64": ...} is bytes.
    """
    [(name, listed)] = request["inputs"].items()
    content = [base64.b64decode(entry["b64"], validate=True) for entry in listed]
    signature = signatures[request.get("signature_name", "serving_default")]
    outputs = signature(**{name: tf.constant(content)})
    return {"outputs": {name: value.numpy().tolist() for name, value in outputs.items()}}


@pytest.fixture(scope="module")
def server(exported):
    signatures = tf.saved_model.load(exported.folder).signatures

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/kmax:predict"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, content = 200, answer(signatures, request)
            except tf.errors.InvalidArgumentError as error:
                status, content = 400, {"error": error.message}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(scope="module")
def segment():
    """The function that the page defines."""
    [code] = re.findall(
        r"```python\n(import base64.*?)\n\n\nresult = ", PAGE.read_text(), re.DOTALL
    )
    names = {}
    exec(code, names)
    return names["segment"]


def test_documented_client_gets_what_predict_gives(server, segment, exported, segmenter):
    folder = pathlib.Path(exported.experiment.data_dir).parent / "val"
    path = str(folder / image_sources.find([str(folder)])[1][0].name)
    expected = segmenter(path, details=True)
    result = segment(path, server, "serving_details")
    np.testing.assert_array_equal(result["panoptic_map"], expected.panoptic_map)
    np.testing.assert_array_equal(result["assignments"], expected.assignments)
    np.testing.assert_allclose(result["confidence"], expected.confidence, atol=1e-5)
    for column, name in enumerate(predict.Segment._fields[1:], 1):
        np.testing.assert_allclose(
            result[name], [s[column] for s in expected.segments], atol=1e-5, err_msg=name
        )
    assert not {"assignments", "confidence"} & segment(path, server).keys()


def test_what_is_no_image_has_its_reason(server, segment, tmp_path):
    (tmp_path / "a.png").write_text("this is a text")
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        segment(str(tmp_path / "a.png"), server)
    assert "image" in json.load(refused.value)["error"]
