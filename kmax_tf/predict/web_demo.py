"""A local web page that shows an exported model's clusters and segments of an image.

The server keeps no image: it sends all pictures to the browser at once, and viewer.js switches
between them.
"""

import base64
import contextlib
import importlib
import os
import socket
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import visualize
from kmax_tf.errors import InputError, first_line
from kmax_tf.files import read_bytes
from kmax_tf.predict import image_sources
from kmax_tf.predict.segmentation import named
from kmax_tf.predict.segmenter import Segmenter

LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_IMAGE = 25_000_000  # pixels; the details of a larger image take many gigabytes
LONGEST_SIDE = 2048  # pixels of the pictures in the browser; the model gets the whole image
MOST_WAITING = 100  # requests in the queue, each with an uploaded file
KEPT = 600  # seconds until an uploaded file is deleted


def views_of(segmenter: Segmenter, path: str) -> dict[str, Any]:
    """Returns the views of an image file for the viewer; the last one is the prediction.

    Returns:
        {"caption", "width", "height", "views"}, or {"refusal": reason}. A view has:
          - "title";
          - "picture" and "ids_picture", data URLs of that width and height; a pixel's item is red
            + 256 * green of "ids_picture";
          - "items", largest first: id, name, score or None, share of the image, color (r, g, b) in
            0..255.
    """
    name = os.path.basename(path)
    try:
        image = image_sources.read_image(path, LARGEST_IMAGE)
        result = segmenter(image, details=True)
    except InputError as error:
        return {"refusal": str(error).replace(path, name)}
    except tf.errors.OpError as error:  # such as of memory
        return {"refusal": f"{name}: {first_line(error)}"}
    shown = _resize(image, Image.Resampling.BICUBIC)
    views = [_view("image", shown, np.zeros(shown.shape[:2], np.int32), {})]
    for number, assignment in enumerate(result.assignments, 1):
        views.append(_cluster_view(f"decoder {number}", shown, assignment))
    views.append(_segment_view(shown, result))
    (height, width), size = shown.shape[:2], f"{image.shape[1]} x {image.shape[0]} pixels"
    return {"caption": f"{name}, {size}", "width": width, "height": height, "views": views}


def _resize(picture, resampling):
    """Resizes a picture or a map to the size in the browser, with the same proportions."""
    longer = max(picture.shape[:2])
    scale = np.clip(longer, visualize.SMALLEST_SIDE, LONGEST_SIDE) / longer
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), resampling))


def _cluster_view(title, shown, assignment):
    ids = _resize(assignment, Image.Resampling.NEAREST)
    items = {
        int(i): {"name": f"cluster {i}", "color": visualize.cluster_color(i)}
        for i in np.unique(ids)
    }
    return _view(title, visualize.assignment_picture(ids, shown), ids, items)


def _segment_view(shown, result):
    ids = _resize(result.panoptic_map, Image.Resampling.NEAREST)
    listed = named(result.segments, result.categories)
    colors = visualize.shades([color for *_, color in listed])
    items = {
        segment.id: {"name": name, "score": segment.score, "color": color}
        for segment, (_, name, _), color in zip(result.segments, listed, colors)
    }
    items[0] = {"name": "void", "color": np.zeros(3)}
    return _view("segments", visualize.overlay(shown, ids, listed), ids, items)


def _view(title, picture, ids, items):
    shares = np.bincount(ids.ravel(), minlength=max(items, default=0) + 1) / ids.size
    listed = [
        {"id": i, "score": None, "share": shares[i]} | item | {"color": item["color"].tolist()}
        for i, item in items.items()
        if shares[i]
    ]
    colors = np.stack([ids & 255, ids >> 8, 0 * ids], axis=-1)
    return {
        "title": title,
        "picture": _url("webp", visualize.webp(picture, LONGEST_SIDE)),
        "ids_picture": _url("png", visualize.png(colors.astype(np.uint8))),
        "items": sorted(listed, key=lambda item: -item["share"]),
    }


def _url(kind, content):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def serve(segmenter: Segmenter, name: str, host: str, port: int) -> None:
    """Serves the page until it is interrupted; `name` is the model's name.

    Raises InputError if Gradio is not installed or the address is not available.
    """
    fastapi, gradio, uvicorn = _packages()
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port}: {error}; give another --host or --port") from error
    with tempfile.TemporaryDirectory() as uploads, contextlib.suppress(KeyboardInterrupt):
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(),
            _blocks(gradio, segmenter, name),
            path="/",
            max_file_size=LARGEST_FILE,
            show_error=False,
            css_paths=_path_of("viewer.css"),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
        )
        print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
        # Every open page keeps a connection, and the shutdown would wait for it.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run([listener])


def _packages():
    """Imports fastapi, gradio and uvicorn; InputError that names all packages that are missing."""
    found, missing = [], []
    for name in ("fastapi", "gradio", "uvicorn"):
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            missing.append(error.name or name)
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        raise InputError(f"{names}: not installed; pip install 'kmax_tf[page]'")
    return found


def _blocks(gradio, segmenter, name):
    size = f"at most {LARGEST_FILE >> 20} MB and {LARGEST_IMAGE // 10**6} million pixels"
    with gradio.Blocks(
        title=name, analytics_enabled=False, delete_cache=(KEPT, KEPT), fill_width=True
    ) as blocks:
        image = gradio.File(label=f"image for {name}", height=120, elem_classes="field")
        viewer = gradio.HTML(
            html_template=f"<div class='viewer'><p>JPEG, PNG, GIF or BMP, {size}</p></div>",
            js_on_load=read_bytes(_path_of("viewer.js")).decode(),
        )
        # The second output empties the field for the next image.
        image.upload(
            lambda path: (views_of(segmenter, path), None),
            image,
            [viewer, image],
            show_progress_on=viewer,
            api_name="look",
            concurrency_limit=1,
        )
    return blocks.queue(max_size=MOST_WAITING)


def _path_of(name):
    return os.path.join(os.path.dirname(__file__), name)
