"""A local web page that shows an exported model's clusters and segments of an image.

The server keeps no image: it sends all pictures to the browser at once, and viewer.js switches
between them.
"""

import asyncio
import base64
import contextlib
import html
import os
import socket
import string
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import visualize
from kmax_tf.errors import InputError
from kmax_tf.files import read_bytes
from kmax_tf.predict import image_sources
from kmax_tf.predict.segmentation import named
from kmax_tf.predict.segmenter import Segmenter, reason

LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_IMAGE = 25_000_000  # pixels; the details of a larger image take many gigabytes
LONGEST_SIDE = 2048  # pixels of the pictures in the browser; the model gets the whole image
MOST_WAITING = 100  # images
MOST_CONNECTIONS = 2 * MOST_WAITING


def views_of(segmenter: Segmenter, name: str, content: bytes) -> dict[str, Any]:
    """Returns the views of an image file for the viewer; the last one is the prediction.

    Returns:
        {"caption", "width", "height", "views"}, or {"refusal": reason}. A view has:
          - "title";
          - "picture" and "ids_picture", data URLs of that width and height; a pixel's item is red
            + 256 * green of "ids_picture";
          - "items", largest first: id, name, score or None, share of the image, color (r, g, b) in
            0..255.
    """
    try:
        image, lost = image_sources.decode_image(content, name, LARGEST_IMAGE)
    except InputError as error:
        return {"refusal": str(error)}
    try:
        result = segmenter(image, details=True)
    except (InputError, tf.errors.OpError) as error:  # such as of memory
        return {"refusal": f"{name}: {reason(error)}"}
    shown = _resize(image, Image.Resampling.BICUBIC)
    views = [_view("image", shown, np.zeros(shown.shape[:2], np.int32), {})]
    for number, assignment in enumerate(result.assignments, 1):
        views.append(_cluster_view(f"decoder {number}", shown, assignment))
    views.append(_segment_view(shown, result))
    (height, width), size = shown.shape[:2], f"{image.shape[1]} x {image.shape[0]} pixels"
    caption = ", ".join(filter(None, (name, size, lost)))
    return {"caption": caption, "width": width, "height": height, "views": views}


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

    Raises InputError if a package is not installed or the address is not available.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(f"{error.name}: not installed; pip install 'kmax_tf[page]'") from error
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError, TypeError) as error:  # TypeError: no name of a host
        raise InputError(f"{host}:{port}: {error}; give another --host or --port") from error
    print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        _Server(segmenter, name).application(),
        log_level="warning",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])


class _Server:
    """Answers `/` with the page, and `/look` with the views of the image in a request."""

    def __init__(self, segmenter: Segmenter, name: str):
        self.segmenter, self.page = segmenter, _page(name)
        self.turn, self.waiting = asyncio.Lock(), 0

    def application(self) -> Any:
        from starlette import applications, requests, responses, routing

        async def gone(request, error):
            return responses.Response()  # nobody reads it

        return applications.Starlette(
            routes=[
                routing.Route("/", self.show),
                routing.Route("/look", self.look, methods=["POST"]),
            ],
            exception_handlers={requests.ClientDisconnect: gone},
        )

    async def show(self, request):
        from starlette.responses import HTMLResponse

        return HTMLResponse(self.page)

    async def look(self, request):
        from starlette.responses import JSONResponse

        name, size = request.query_params.get("name", "image"), 0
        with tempfile.TemporaryFile() as file:  # has no name, so that nothing of it stays
            async for part in request.stream():  # to its end, or the browser reads no answer
                size += len(part)
                file.write(part if size <= LARGEST_FILE else b"")
            if size > LARGEST_FILE:
                refusal = f"{name}: more than {LARGEST_FILE >> 20} MB; scale it down"
                return JSONResponse({"refusal": refusal}, 413)
            if self.waiting == MOST_WAITING:
                refusal = f"{name}: {MOST_WAITING} images wait already; try again later"
                return JSONResponse({"refusal": refusal}, 503)
            self.waiting += 1
            try:
                return JSONResponse(await self._views_in_turn(request, name, file))
            except asyncio.CancelledError:  # the server ends
                return JSONResponse({"refusal": f"{name}: the server was stopped"}, 503)
            finally:
                self.waiting -= 1

    async def _views_in_turn(self, request, name, file):
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect

        async with self.turn:
            if await request.is_disconnected():
                raise ClientDisconnect
            file.seek(0)
            return await run_in_threadpool(views_of, self.segmenter, name, file.read())


def _page(name):
    """Returns the page as one text, which loads nothing."""
    viewer = os.path.join(os.path.dirname(__file__), "viewer")
    parts = {kind: read_bytes(f"{viewer}.{kind}").decode() for kind in ("html", "css", "js")}
    limits = f"at most {LARGEST_FILE >> 20} MB and {LARGEST_IMAGE // 10**6} million pixels"
    return string.Template(parts["html"]).substitute(
        name=html.escape(name), limits=limits, style=parts["css"], script=parts["js"]
    )
