"""The frame of our HTML pages: sections, tables and pictures in one file that loads no other."""

import base64
import html
import os
import re
from collections.abc import Sequence

import tensorflow as tf

from kmax_tf.files import matching, read_bytes, write_atomic

PAGE = os.path.join(os.path.dirname(__file__), "page.html")
NOTES = {
    "What the clusters do": "Each decoder assigns every pixel to one cluster. PQ of the "
    "assignment: of the clusters taken as a prediction, at the decoder's stride, with the classes "
    "that it gives them. PQ of the label: what that stride allows. Pixels that change: their "
    "cluster is another one than in the decoder before. In use: clusters with a pixel, on average "
    "over the images.",
    "Classes": "A segment is found if a prediction has its class and an IoU above 0.5 with it. "
    "Click a heading to sort.",
    "Sizes": "Mask AP of the things by their area in the image.",
    "Lost segments": "Counted in a sample of the training images: training does not see them, or "
    "the model cannot predict them. The bindings after a colon change that.",
    "Confusion": "The pairs of classes that cost most pixels, with the share of the true class "
    "that is predicted as the other.",
}


def write_page(path: str, title: str, sections: Sequence[str]) -> str:
    """Writes a page of HTML sections and returns its path."""
    page = read_bytes(PAGE).decode().replace("{title}", html.escape(title))
    write_atomic(path, page.replace("{body}", "\n".join(sections)))
    return path


def section(title: str, content: str) -> str:
    """A titled section of the page; empty without content."""
    note = f'<p class="note">{NOTES[title]}</p>' if title in NOTES else ""
    return f"<section><h2>{title}</h2>{note}{content}</section>" if content else ""


def table(head: Sequence[str], rows: Sequence[Sequence], kind: str = "sortable") -> str:
    """A table; `head` and `rows` hold cells of HTML, the first cell of a row is its heading."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join(
        f"<tr><th>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for first, *cells in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def strip(place: str, titles: dict[str, str]) -> str:
    """Pictures of a folder side by side; `titles` is {name: title}."""
    figures = "".join(picture(f"{place}/{name}.webp", title) for name, title in titles.items())
    return f'<div class="strip">{figures}</div>'


def picture(path: str, title: str) -> str:
    """A picture file as a figure of the page; empty if the file is missing."""
    if not tf.io.gfile.exists(path):
        return ""
    data = base64.b64encode(read_bytes(path)).decode()
    return (
        f'<figure><img alt="{html.escape(title)}" src="data:image/webp;base64,{data}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def cluster_titles(place: str) -> dict[str, str]:
    """The cluster pictures in the folder of an image, {name: title}, in decoder order."""
    numbers = sorted(
        int(re.findall(r"_(\d+)\.webp$", path)[0]) for path in matching(place, "assignment_*.webp")
    )
    return {f"assignment_{i}": f"clusters, decoder {i}" for i in numbers}
