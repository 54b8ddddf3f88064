"""A run folder's metrics, loss curves and pictures -> one self-contained HTML page."""

import base64
import html
import os
import re
from collections.abc import Sequence

import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.files import field, read_bytes, read_json, write_atomic
from kmax_tf.report.chart import chart, percent
from kmax_tf.run_folder import layout

PAGE = os.path.join(os.path.dirname(__file__), "page.html")
GROUPS = (("All", ""), ("Things", "_things"), ("Stuff", "_stuff"))
ROLES = {
    "first": (
        "Pictures",
        "The first images of the split, the same at every step. Where a prediction is dark, no "
        "segment was found. Of each decoder: which cluster centre every pixel is assigned to.",
    ),
    "worst": (
        "Failure cases",
        "Of all other images those with the lowest PQ of their own. Missed: segments of the label "
        "that no prediction matches; false: predicted ones that match nothing.",
    ),
    "best": ("Best images", "The images with the highest PQ of their own."),
}
NOTES = {
    "Classes": "A segment is found if its class is right and its overlap with the label is more "
    "than half of their union. Press a heading to sort.",
    "Sizes": "Mask AP of the things by their area in the image.",
    "Confusion": "Which class is taken for which: the pairs that cost most pixels, with the share "
    "of the true class that they take.",
}


def write_report(run_dir: str) -> str:
    """Writes `report.html` into a run folder, from the files there and nothing else.

    Args:
        run_dir: folder with metrics.json (required; percent), eval/metrics-XXXXXXXX.json (one an
            evaluated checkpoint), TensorBoard files in train/, eval/pictures/ and config.gin.

    Returns:
        The path of the page, which fetches nothing.

    Raises:
        InputError: metrics.json is missing or lacks a field.
    """
    path = layout.latest_metrics(run_dir)
    if not tf.io.gfile.exists(path):
        raise InputError(f"{path}: missing; evaluate a checkpoint of the run first")
    metrics = read_json(path)
    for key, kind in {"step": int, "num_images": int, "classes": list, "pictures": list}.items():
        field(metrics, key, kind, path)

    evaluations = read_evaluations(run_dir)
    charts = _quality_charts(evaluations) + _loss_charts(_read_losses(layout.training(run_dir)))
    config = layout.config(run_dir)
    sections = [
        _headline(run_name(run_dir), metrics),
        section("Training", f'<div class="grid">{charts}</div>' if charts else ""),
        *_picture_sections(layout.pictures(run_dir), metrics["pictures"]),
        section("Classes", _class_table(metrics["classes"])),
        f'<div class="grid">{section("Sizes", _size_table(metrics))}'
        f"{section('Confusion', _confusion_table(metrics.get('confusion')))}</div>",
    ]
    if tf.io.gfile.exists(config):
        text = html.escape(read_bytes(config).decode())
        sections.append(f"<details><summary>config.gin</summary><pre>{text}</pre></details>")
    return write_page(os.path.join(run_dir, "report.html"), run_name(run_dir), sections)


def write_page(path: str, title: str, sections: Sequence[str]) -> str:
    """Writes a page of sections; returns its path."""
    page = read_bytes(PAGE).decode().replace("{title}", html.escape(title))
    write_atomic(path, page.replace("{body}", "\n".join(sections)))
    return path


def run_name(run_dir: str) -> str:
    """The last part of a run folder's path."""
    return os.path.basename(str(run_dir).rstrip("/"))


def read_evaluations(run_dir: str) -> list[dict]:
    """The metrics of all evaluated steps, ascending."""
    return [read_json(path) for path in layout.all_metrics(run_dir)]


def section(title: str, content: str) -> str:
    """A titled part of the page, empty where there is no content."""
    note = f'<p class="note">{NOTES[title]}</p>' if title in NOTES else ""
    return f"<section><h2>{title}</h2>{note}{content}</section>" if content else ""


def table(head: Sequence[str], rows: Sequence[Sequence], kind: str = "sortable") -> str:
    """A table: `head` of texts, `rows` of cells, each HTML, the first of them a row's heading."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join(
        f"<tr><th>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for first, *cells in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _headline(name, metrics):
    rows = [
        (title, *(percent(metrics.get(key + suffix)) for key in ("PQ", "SQ", "RQ")))
        for title, suffix in GROUPS
    ]
    others = " · ".join(f"{key} {percent(metrics.get(key))}" for key in ("AP", "mIoU"))
    return (
        f'<header><div><p class="run">{html.escape(name)}</p>'
        f'<p class="pq">{percent(metrics["PQ"])}<small>PQ</small></p>'
        f"<p>{others}</p>"
        f"<p>step {metrics['step']:,} · {metrics['num_images']:,} images</p></div>"
        f"<div>{table(('percent', 'PQ', 'SQ', 'RQ'), rows, kind='')}"
        '<p class="note">Panoptic quality PQ = SQ × RQ, of the official COCO metric: how well the '
        "found segments fit, times how many are found. AP: masks of things. mIoU: pixels.</p>"
        "</div></header>"
    )


def _class_table(classes):
    """Things first, best class first."""
    ordered = sorted(classes, key=lambda c: (not c["isthing"], -(c["PQ"] or 0)))
    rows = [
        (
            f'{html.escape(c["name"])}<i style="width:{c["PQ"] or 0:.1f}%"></i>',
            "thing" if c["isthing"] else "stuff",
            *(percent(c.get(key)) for key in ("PQ", "SQ", "RQ", "AP", "IoU")),
            *(c.get(key, "–") for key in ("tp", "fn", "fp")),
        )
        for c in ordered
    ]
    head = ("class", "kind", "PQ", "SQ", "RQ", "AP", "IoU", "found", "missed", "false")
    return table(head, rows, kind="sortable classes") if rows else ""


def _size_table(metrics):
    sizes = {"small (under 32 × 32)": "APs", "medium": "APm", "large (from 96 × 96)": "APl"}
    rows = [(name, percent(metrics.get(key))) for name, key in sizes.items()]
    return (
        table(("pixels", "AP"), rows, kind="") if any(k in metrics for k in sizes.values()) else ""
    )


def _confusion_table(pairs):
    rows = [
        (html.escape(p["true"]), html.escape(p["predicted"]), f"{percent(p['share'])} %")
        for p in pairs or []
    ]
    return table(("is", "taken for", "share"), rows, kind="") if rows else ""


def _quality_charts(evaluations):
    steps = [evaluation["step"] for evaluation in evaluations]
    charts = ""
    for title, names in (
        ("PQ", {"all": "PQ", "things": "PQ_things", "stuff": "PQ_stuff"}),
        ("AP and mIoU", {"AP": "AP", "mIoU": "mIoU"}),
    ):
        curves = {name: [e.get(key) for e in evaluations] for name, key in names.items()}
        charts += chart(title, steps, curves)
    return charts


def _loss_charts(losses):
    """One chart for every loss, the total first, which is of all outputs."""
    charts = ""
    for tag in sorted(losses, key=lambda tag: (tag != "loss/total", tag)):
        steps = sorted(losses[tag])
        name = tag.removeprefix("loss/")
        title = "loss: total, with all decoders" if name == "total" else f"loss: {name}"
        charts += chart(title, steps, {"": [losses[tag][step] for step in steps]})
    return charts


def _read_losses(folder):
    """{tag: {step: value}} of TensorBoard files; of a step written twice the newer file counts."""
    losses = {}
    paths = sorted(tf.io.gfile.glob(tf.io.gfile.join(folder, "*tfevents*")))
    for event in (event for path in paths for event in _events(path)):
        for value in event.summary.value:
            if value.tag.startswith("loss/"):
                number = float(tf.make_ndarray(value.tensor))
                losses.setdefault(value.tag, {})[event.step] = number
    return losses


def _events(path):
    try:
        for record in tf.data.TFRecordDataset(path):
            yield tf.compat.v1.Event.FromString(record.numpy())
    except tf.errors.DataLossError:
        pass  # a run that was cut off ends in half a record


def _picture_sections(folder, entries):
    for role, (title, note) in ROLES.items():
        strips = "".join(_strip(folder, e) for e in entries if e["role"] == role)
        yield section(title, strips and f'<p class="note">{note}</p>{strips}')


def _strip(folder, entry):
    """One image: itself, label, prediction, then the clusters of every decoder in order."""
    place = tf.io.gfile.join(folder, entry["folder"])
    titles = {"image": "image", "label": "label", "prediction": "prediction"}
    facts = [f"PQ {percent(entry['PQ'])}"]
    for kind in ("missed", "false"):
        if entry[kind]:
            facts.append(f"{kind}: " + ", ".join(f"{n} {name}" for name, n in entry[kind].items()))
    text = html.escape(" · ".join([entry["name"], *facts]))
    return f"<h3>{text}</h3>{strip(place, titles | cluster_titles(place))}"


def cluster_titles(place: str) -> dict[str, str]:
    """The cluster pictures in the folder of an image, {name: title}, a decoder each, in order."""
    numbers = sorted(
        int(re.findall(r"_(\d+)\.webp$", path)[0])
        for path in tf.io.gfile.glob(f"{place}/assignment_*.webp")
    )
    return {f"assignment_{i}": f"clusters, decoder {i}" for i in numbers}


def strip(place: str, titles: dict[str, str]) -> str:
    """Pictures of a folder side by side, {name: title}."""
    figures = "".join(picture(f"{place}/{name}.webp", title) for name, title in titles.items())
    return f'<div class="strip">{figures}</div>'


def picture(path: str, title: str) -> str:
    """A picture file as a figure of the page, empty if it is gone."""
    if not tf.io.gfile.exists(path):
        return ""
    data = base64.b64encode(read_bytes(path)).decode()
    return (
        f'<figure><img alt="{html.escape(title)}" src="data:image/webp;base64,{data}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )
