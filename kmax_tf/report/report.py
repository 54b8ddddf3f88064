"""The report of a run: metrics, loss curves and pictures on one self-contained HTML page."""

import html

import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.files import field, matching, read_bytes, read_json
from kmax_tf.report import clusters
from kmax_tf.report.chart import draw_chart, format_percent
from kmax_tf.report.html_page import cluster_titles, section, strip, table, write_page
from kmax_tf.report.quality import GROUPS, baseline_text
from kmax_tf.run_folder import layout, results

ROLES = {
    "first": (
        "Pictures",
        "The first images of the split, the same at every step. Dark areas of a prediction have "
        "no segment. For each decoder: the cluster center that each pixel is assigned to.",
    ),
    "worst": (
        "Failure cases",
        "The other images with the lowest PQ of a single image. Missed: segments of the label "
        "without a matching prediction. False: predicted segments without a match.",
    ),
    "best": ("Best images", "The other images with the highest PQ of a single image."),
}
TITLES = {
    "recall": "recall in training: share of segments found",
    "loss/total": "loss: total, with all decoders",
}


def write_report(run_dir: str) -> str:
    """Writes `report.html` into a run folder, from the files there and nothing else.

    Args:
        run_dir: folder with metrics.json. Its eval/metrics-XXXXXXXX.json, eval/baseline.json,
            eval/pictures/, train/ (TensorBoard files), segments.txt and config.gin are shown too,
            if they exist.

    Returns:
        The path of the page, which loads no other file.

    Raises:
        InputError: metrics.json is missing or lacks a field.
    """
    path = layout.latest_metrics(run_dir)
    if not tf.io.gfile.exists(path):
        raise InputError(f"{path}: missing; evaluate a checkpoint of the run first")
    metrics = read_json(path)
    for key, kind in {"step": int, "num_images": int, "classes": list, "pictures": list}.items():
        field(metrics, key, kind, path)

    evaluations = results.read_evaluations(run_dir)
    charts = _quality_charts(evaluations) + _training_charts(layout.training(run_dir))
    config = layout.config(run_dir)
    lost = "".join(f"<p>{html.escape(line)}</p>" for line in results.read_lost_segments(run_dir))
    sections = [
        _headline(results.run_name(run_dir), metrics, _baseline(run_dir)),
        section("Training", f'<div class="grid">{charts}</div>' if charts else ""),
        section("What the clusters do", _clusters(metrics, evaluations)),
        section("Lost segments", lost),
        *_picture_sections(layout.pictures(run_dir), metrics["pictures"]),
        section("Classes", _class_table(metrics["classes"])),
        f'<div class="grid">{section("Sizes", _size_table(metrics))}'
        f"{section('Confusion', _confusion_table(metrics.get('confusion')))}</div>",
    ]
    if tf.io.gfile.exists(config):
        text = html.escape(read_bytes(config).decode())
        sections.append(f"<details><summary>config.gin</summary><pre>{text}</pre></details>")
    return write_page(layout.report(run_dir), results.run_name(run_dir), sections)


def _baseline(run_dir):
    """A line about the trivial baseline, empty if there is none."""
    path = layout.baseline(run_dir)
    if not tf.io.gfile.exists(path):
        return ""
    return f"<p>{html.escape(baseline_text(read_json(path)))}</p>"


def _headline(name, metrics, baseline):
    keys = ("PQ", "SQ", "RQ", "recall")
    rows = [
        (title, *(format_percent(metrics.get(key + suffix)) for key in keys))
        for title, suffix in GROUPS
    ]
    figures = "".join(
        f'<p class="pq">{format_percent(metrics.get("PQ" + suffix))}<small>{title}</small></p>'
        for title, suffix in (("PQ", ""), *((name.lower(), suffix) for name, suffix in GROUPS[1:]))
    )
    others = " · ".join(f"{key} {format_percent(metrics.get(key))}" for key in ("AP", "mIoU"))
    return (
        f'<header><div><p class="run">{html.escape(name)}</p>'
        f'<div class="figures">{figures}</div>'
        f"<p>{others}</p>{baseline}"
        f"<p>step {metrics['step']:,} · {metrics['num_images']:,} images</p></div>"
        f"<div>{table(('percent', *keys), rows, kind='')}"
        '<p class="note">Panoptic quality of a class PQ = SQ × RQ, by the official COCO metric: '
        "how well found segments fit, times how many are found. Figures are means over classes. "
        "Recall: the share of all segments that are found. AP: masks of things. mIoU: pixels.</p>"
        "</div></header>"
    )


def _class_table(classes):
    """The classes, things first, then by PQ."""
    ordered = sorted(classes, key=lambda c: (not c["isthing"], -(c["PQ"] or 0)))
    rows = [
        (
            f'{html.escape(c["name"])}<i style="width:{c["PQ"] or 0:.1f}%"></i>',
            "thing" if c["isthing"] else "stuff",
            *(format_percent(c.get(key)) for key in ("PQ", "SQ", "RQ", "AP", "IoU")),
            *(c.get(key, "–") for key in ("tp", "fn", "fp")),
        )
        for c in ordered
    ]
    head = ("class", "kind", "PQ", "SQ", "RQ", "AP", "IoU", "found", "missed", "false")
    return table(head, rows, kind="sortable classes") if rows else ""


def _size_table(metrics):
    sizes = {"small (under 32 × 32)": "APs", "medium": "APm", "large (from 96 × 96)": "APl"}
    rows = [(name, format_percent(metrics.get(key))) for name, key in sizes.items()]
    known = any(key in metrics for key in sizes.values())
    return table(("pixels", "AP"), rows, kind="") if known else ""


def _confusion_table(pairs):
    rows = [
        (html.escape(p["true"]), html.escape(p["predicted"]), f"{format_percent(p['share'])} %")
        for p in pairs or []
    ]
    return table(("is", "taken for", "share"), rows, kind="") if rows else ""


def _quality_charts(evaluations):
    steps = [evaluation["step"] for evaluation in evaluations]
    charts = ""
    for title, names in (
        ("PQ", {"all": "PQ", "things": "PQ_things", "stuff": "PQ_stuff"}),
        (
            "recall at IoU 0.5",
            {"all": "recall", "things": "recall_things", "stuff": "recall_stuff"},
        ),
        ("AP and mIoU", {"AP": "AP", "mIoU": "mIoU"}),
    ):
        curves = {name: [e.get(key) for e in evaluations] for name, key in names.items()}
        charts += draw_chart(title, steps, curves)
    return charts


def _clusters(metrics, evaluations):
    """A table of the decoders at the latest step, and charts over the steps."""
    decoders = metrics.get("decoders")
    if not decoders:
        return ""
    lines = clusters.lines(decoders)
    lines.append(("final prediction", format_percent(metrics["PQ"]), "", "", ""))
    charts = clusters.charts(
        [e["step"] for e in evaluations], [e.get("decoders", []) for e in evaluations]
    )
    images = f'<p class="note">on the first {decoders[0]["num_images"]:,} images</p>'
    return f'{table(clusters.HEAD, lines, kind="")}{images}<div class="grid">{charts}</div>'


def _training_charts(folder):
    """One chart for the recall, then one for each loss, the total first."""
    scalars = _read_scalars(folder)
    charts = ""
    for tag in sorted(scalars, key=lambda tag: (tag != "recall", tag != "loss/total", tag)):
        steps = sorted(scalars[tag])
        title = TITLES.get(tag) or f"loss: {tag.removeprefix('loss/')}"
        charts += draw_chart(title, steps, {"": [scalars[tag][step] for step in steps]})
    return charts


def _read_scalars(folder):
    """{tag: {step: value}} of TensorBoard files, for the recall and the losses.

    From the first step of a newer file on, an older one counts no more: training went back.
    """
    scalars = {}
    for path in matching(folder, "*tfevents*"):
        newer = {}
        for event in _events(path):
            for value in event.summary.value:
                if value.tag == "recall" or value.tag.startswith("loss/"):
                    number = float(tf.make_ndarray(value.tensor))
                    newer.setdefault(value.tag, {})[event.step] = number
        for tag, values in newer.items():
            before = {s: v for s, v in scalars.get(tag, {}).items() if s < min(values)}
            scalars[tag] = before | values
    return scalars


def _events(path):
    try:
        for record in tf.data.TFRecordDataset(path):
            yield tf.compat.v1.Event.FromString(record.numpy())
    except tf.errors.DataLossError:
        pass  # the file of an interrupted run ends with a partial record


def _picture_sections(folder, entries):
    for role, (title, note) in ROLES.items():
        strips = "".join(_strip(folder, e) for e in entries if e["role"] == role)
        yield section(title, strips and f'<p class="note">{note}</p>{strips}')


def _strip(folder, entry):
    """One image with its label, its prediction and the clusters of every decoder in order."""
    place = tf.io.gfile.join(folder, entry["folder"])
    titles = {"image": "image", "label": "label", "prediction": "prediction"}
    facts = [f"PQ {format_percent(entry['PQ'])}"]
    for kind in ("missed", "false"):
        if entry[kind]:
            facts.append(f"{kind}: " + ", ".join(f"{n} {name}" for name, n in entry[kind].items()))
    text = html.escape(" · ".join([entry["name"], *facts]))
    return f"<h3>{text}</h3>{strip(place, titles | cluster_titles(place))}"
