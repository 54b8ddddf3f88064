"""A local web page that shows what an exported model sees in an image, step by step.

The server keeps nothing of an image: all of its pictures go to the browser at once, where
viewer.js switches segments and steps.
"""

import base64
import contextlib
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
from kmax_tf.predict.segmenter import Segmenter

LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_IMAGE = 25_000_000  # pixels: details of more would take many gigabytes
LONGEST_SIDE = 2048  # pixels of what the browser shows; the model sees the whole image
MOST_WAITING = 100  # requests in the queue, each with its uploaded file
KEPT = 600  # seconds that an uploaded file stays


def look(segmenter: Segmenter, path: str) -> dict[str, Any]:
    """What the viewer shows of an image file: its views, the last of them the prediction.

    Returns:
        {"caption", "width", "height", "views"}, or {"refusal"}, a text, for what cannot be shown.
        A view has a "title", a "picture" and "ids_picture", data URLs of that width and height,
        and its "items", largest first: id, name, score (or None), share of the image, color
        (r, g, b) 0..255. Red and 256 times green of "ids_picture" is the pixel's item.
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
    views.append(_segment_view(segmenter.categories, shown, result))
    (height, width), size = shown.shape[:2], f"{image.shape[1]} x {image.shape[0]} pixels"
    return {"caption": f"{name}, {size}", "width": width, "height": height, "views": views}


def _resize(picture, resampling):
    """A picture or a map with its longer side as it is shown, the proportions kept."""
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


def _segment_view(categories, shown, result):
    by_id = {category.id: category for category in categories}
    ids = _resize(result.panoptic_map, Image.Resampling.NEAREST)
    named = [(s.id, by_id[s.category_id].name, by_id[s.category_id].color) for s in result.segments]
    colors = visualize.shades([color for *_, color in named])
    items = {
        segment.id: {"name": name, "score": segment.score, "color": color}
        for segment, (_, name, _), color in zip(result.segments, named, colors)
    }
    items[0] = {"name": "void", "color": np.zeros(3)}
    return _view("segments", visualize.overlay(shown, ids, named), ids, items)


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
    """Serves the page until it is interrupted; `name` is that of the model.

    Raises InputError if Gradio is not installed or the address cannot be had.
    """
    try:
        import fastapi
        import gradio
        import uvicorn
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install -e .[page]") from error
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
            css_paths=_beside("viewer.css"),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
        )
        print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
        # Every open page keeps a connection, for which the end would wait.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run([listener])


def _blocks(gradio, segmenter, name):
    size = f"at most {LARGEST_FILE >> 20} MB and {LARGEST_IMAGE // 10**6} million pixels"
    with gradio.Blocks(
        title=name, analytics_enabled=False, delete_cache=(KEPT, KEPT), fill_width=True
    ) as blocks:
        image = gradio.File(label=f"image for {name}", height=120, elem_classes="field")
        viewer = gradio.HTML(
            html_template=f"<div class='viewer'><p>JPEG, PNG, GIF or BMP, {size}</p></div>",
            js_on_load=read_bytes(_beside("viewer.js")).decode(),
        )
        # The field is empty again for the next image.
        image.upload(
            lambda path: (look(segmenter, path), None),
            image,
            [viewer, image],
            show_progress_on=viewer,
            api_name="look",
            concurrency_limit=1,
        )
    return blocks.queue(max_size=MOST_WAITING)


def _beside(name):
    return os.path.join(os.path.dirname(__file__), name)
