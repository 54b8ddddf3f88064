"""A run folder's metrics, loss curves and pictures -> one self-contained HTML page."""

import base64
import html
import json
import math
import os
import re

import tensorflow as tf

from kmax_tf.files import InputError, field, read_bytes, read_json, write_atomic

COLORS = ("#3b82f6", "#f97316", "#10b981")  # legible on white and on black
POINTS = 400  # a curve is drawn with at most this many


def write_report(run_dir: str) -> str:
    """Writes `report.html` into a run folder, from the files there and nothing else.

    Args:
        run_dir: folder with metrics.json (required; percent), eval/metrics-XXXXXXXX.json (one an
            evaluated checkpoint), TensorBoard files in train/, pictures in eval/pictures/<stem>/
            (image.png, label.png, prediction.png, assignment_1.png ...) and config.gin.

    Returns:
        The path of the page, which fetches nothing.

    Raises:
        InputError: metrics.json is missing or lacks a field.
    """
    join, glob = tf.io.gfile.join, tf.io.gfile.glob
    path = join(run_dir, "metrics.json")
    if not tf.io.gfile.exists(path):
        raise InputError(f"{path}: missing; evaluate a checkpoint of the run first")
    metrics = read_json(path)
    for key, kind in {"step": int, "num_images": int, "PQ": float, "classes": list}.items():
        field(metrics, key, kind, path)

    evaluations = [read_json(name) for name in sorted(glob(join(run_dir, "eval/metrics-*.json")))]
    losses = _read_losses(glob(join(run_dir, "train/*tfevents*")))
    charts = _quality_chart(evaluations) + _loss_charts(losses)
    config = join(run_dir, "config.gin")
    name = os.path.basename(str(run_dir).rstrip("/"))
    sections = [
        _headline(name, metrics),
        _section("Training", f'<div class="grid">{charts}</div>' if charts else ""),
        _section("Pictures", _pictures(join(run_dir, "eval/pictures"), metrics["pictures"])),
        _section("Classes", _class_tables(metrics["classes"])),
    ]
    if tf.io.gfile.exists(config):
        text = html.escape(read_bytes(config).decode())
        sections.append(f"<details><summary>config.gin</summary><pre>{text}</pre></details>")
    page = PAGE.replace("{title}", html.escape(name)).replace("{body}", "\n".join(sections))
    target = join(run_dir, "report.html")
    write_atomic(target, page)
    return target


def _section(title, content):
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _number(value):
    """At most two decimal digits, or two significant ones where those would all be 0."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _percent(value):
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _headline(name, metrics):
    rows = "".join(
        f"<tr><th>{title}</th>"
        + "".join(f"<td>{_percent(metrics.get(key + suffix))}</td>" for key in ("PQ", "SQ", "RQ"))
        + "</tr>"
        for title, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff"))
    )
    return (
        f'<header><div><p class="run">{html.escape(name)}</p>'
        f'<p class="pq">{_percent(metrics["PQ"])}<small>PQ</small></p>'
        f"<p>step {metrics['step']:,} · {metrics['num_images']:,} images</p></div>"
        f"<table><tr><th></th><th>PQ</th><th>SQ</th><th>RQ</th></tr>{rows}</table></header>"
    )


def _class_tables(classes):
    """One table of the things and one of the stuff, best class first."""
    tables = ""
    for title, isthing in (("Things", True), ("Stuff", False)):
        chosen = [c for c in classes if bool(c["isthing"]) == isthing]
        chosen.sort(key=lambda c: -(c["PQ"] or 0))
        rows = "".join(
            f'<tr><th>{html.escape(c["name"])}<i style="width:{c["PQ"] or 0:.1f}%"></i></th>'
            + "".join(f"<td>{_percent(c[key])}</td>" for key in ("PQ", "SQ", "RQ"))
            + "</tr>"
            for c in chosen
        )
        if rows:
            head = f"<tr><th>{title}</th><th>PQ</th><th>SQ</th><th>RQ</th></tr>"
            tables += f'<table class="classes">{head}{rows}</table>'
    return f'<div class="grid">{tables}</div>' if tables else ""


def _quality_chart(evaluations):
    keys = [key for key in ("PQ", "PQ_things", "PQ_stuff") if all(key in e for e in evaluations)]
    names = {"PQ": "all", "PQ_things": "things", "PQ_stuff": "stuff"}
    steps = [evaluation["step"] for evaluation in evaluations]
    return _chart("PQ", steps, {names[key]: [e[key] for e in evaluations] for key in keys})


def _loss_charts(losses):
    """One chart for every loss, the total first."""
    charts = ""
    for tag in sorted(losses, key=lambda tag: (tag != "loss/total", tag)):
        steps = sorted(losses[tag])
        name = tag.removeprefix("loss/")
        charts += _chart(f"loss: {name}", steps, {"": [losses[tag][step] for step in steps]})
    return charts


def _read_losses(paths):
    """{tag: {step: value}} of TensorBoard files; of a step written twice the newer file counts."""
    losses = {}
    for path in sorted(paths):
        try:
            for record in tf.data.TFRecordDataset(path):
                event = tf.compat.v1.Event.FromString(record.numpy())
                for value in event.summary.value:
                    if value.tag.startswith("loss/"):
                        losses.setdefault(value.tag, {})[event.step] = float(
                            tf.make_ndarray(value.tensor)
                        )
        except tf.errors.DataLossError:
            pass  # a run that was cut off ends in half a record
    return losses


def _chart(title, steps, curves):
    """A figure with one line a curve over the steps; its caption tells the values pointed at.

    Args:
        title: str.
        steps: ints, ascending.
        curves: {name: values}, as many values as steps; gaps where they are not finite.

    Returns:
        HTML, empty where there is nothing to draw.
    """
    every = -(-len(steps) // POINTS) or 1
    kept = sorted({*range(0, len(steps), every), len(steps) - 1} - {-1})
    steps = [steps[i] for i in kept]
    curves = {name: [_finite(values[i]) for i in kept] for name, values in curves.items()}
    heights = [v for values in curves.values() for v in values if v is not None]
    if not heights:
        return ""
    left, right, top, bottom = 44, 348, 10, 172
    low, high = min(0, *heights), max(*heights, 0) or 1
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step):
        return round(left + (right - left) * (step - first) / (last - first), 1)

    def y(value):
        return round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    marks = ""
    for tick in _ticks(low, high):
        marks += f'<path class="rule" d="M{left} {y(tick)}H{right}"/>'
        marks += f'<text x="{left - 6}" y="{y(tick) + 4}" text-anchor="end">{_number(tick)}</text>'
    for tick in _ticks(first, last):
        marks += f'<text x="{x(tick)}" y="190" text-anchor="middle">{_number(tick)}</text>'
    for color, values in zip(COLORS, curves.values()):
        points = [(x(s), y(v)) for s, v in zip(steps, values) if v is not None]
        line = " ".join(f"{a},{b}" for a, b in points)
        marks += f'<polyline points="{line}" stroke="{color}"/>'
        if len(points) <= 30:
            marks += "".join(
                f'<circle cx="{a}" cy="{b}" r="2.5" fill="{color}"/>' for a, b in points
            )
    notes = [
        f"step {step:,}"
        + "".join(
            f' <b style="color:{color}">{html.escape(name)} {_number(values[i])}</b>'
            for color, (name, values) in zip(COLORS, curves.items())
        )
        for i, step in enumerate(steps)
    ]
    data = html.escape(json.dumps({"x": [x(step) for step in steps], "notes": notes}))
    return (
        f"<figure><figcaption><strong>{html.escape(title)}</strong> <output>{notes[-1]}</output>"
        f'</figcaption><svg viewBox="0 0 360 196" data-chart="{data}">{marks}'
        f'<path class="cursor" d="M0 {top}V{bottom}"/></svg></figure>'
    )


def _finite(value):
    return value if value is not None and math.isfinite(value) else None


def _ticks(low, high):
    """Three to six round numbers in [low, high]."""
    size = 10 ** math.floor(math.log10((high - low) / 3))
    size *= max(factor for factor in (1, 2, 5) if factor * size <= (high - low) / 3 * 1.000001)
    return [i * size for i in range(math.ceil(low / size), math.floor(high / size + 1e-6) + 1)]


def _pictures(folder, entries):
    """A strip an image: image, label, prediction, then the clusters of every decoder in order."""
    strips = ""
    for entry in entries:
        place = tf.io.gfile.join(folder, entry["folder"])
        numbers = sorted(
            int(re.findall(r"_(\d+)\.webp$", path)[0])
            for path in tf.io.gfile.glob(f"{place}/assignment_*.webp")
        )
        titles = {"image": "image", "label": "label", "prediction": "prediction"}
        titles.update({f"assignment_{i}": f"clusters, decoder {i}" for i in numbers})
        figures = ""
        for name, title in titles.items():
            data = base64.b64encode(read_bytes(f"{place}/{name}.webp")).decode()
            figures += (
                f'<figure><img alt="{title}" src="data:image/webp;base64,{data}">'
                f"<figcaption>{title}</figcaption></figure>"
            )
        strips += f'<h3>{html.escape(entry["name"])}</h3><div class="strip">{figures}</div>'
    return strips


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --quiet: #777; --bar: #3b82f6; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: auto; padding: 20px 16px; }
p, figure { margin: 0; }
h2 { font-size: 1.2rem; margin: 44px 0 12px; }
h3 { font-size: .85rem; font-weight: 500; color: var(--quiet); margin: 16px 0 6px; }
header { display: flex; flex-wrap: wrap; gap: 16px 64px; align-items: end; }
header p { color: var(--quiet); }
header .run { font-weight: 600; }
header .pq { font-size: 5rem; font-weight: 700; line-height: 1.1; color: CanvasText; }
header small { font-size: 1.3rem; margin-left: 10px; color: var(--quiet); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 500; }
th:first-child { text-align: left; padding-left: 0; }
tr:first-child th { color: var(--quiet); font-size: .85rem; }
.grid { display: grid; gap: 28px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.classes th:first-child { width: 100%; position: relative; overflow-wrap: anywhere; }
.classes i { position: absolute; left: 0; bottom: -1px; height: 2px; background: var(--bar); }
figcaption { font-size: .85rem; color: var(--quiet); display: flex; flex-wrap: wrap; gap: 0 10px; }
figcaption strong { color: CanvasText; }
svg { display: block; width: 100%; touch-action: pan-y; }
svg text { font-size: 11px; fill: var(--quiet); }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.rule { stroke: var(--line); }
.cursor { stroke: var(--quiet); visibility: hidden; }
.strip { display: grid; gap: 8px; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.strip figure { max-width: 300px; }
@media (max-width: 600px) {
  .strip { grid-template-columns: none; grid-auto-flow: column; grid-auto-columns: 40vw;
    overflow-x: auto; padding-bottom: 8px; }
}
.strip img { display: block; width: 100%; border-radius: 4px; cursor: zoom-in; }
dialog { border: 0; padding: 0; max-width: 96vw; background: none; }
dialog img { display: block; width: 96vw; height: 92vh; object-fit: contain; cursor: zoom-out; }
dialog::backdrop { background: #000c; }
details { margin-top: 44px; }
pre { overflow-x: auto; background: var(--soft); padding: 12px; border-radius: 4px; }
</style>
</head>
<body>
{body}
<dialog><img alt="enlarged picture"></dialog>
<script>
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const {x, notes} = JSON.parse(svg.dataset.chart);
  const cursor = svg.querySelector(".cursor");
  const output = svg.parentNode.querySelector("output");
  const show = (i, visibility) => {
    output.innerHTML = notes[i];
    cursor.setAttribute("transform", `translate(${x[i]})`);
    cursor.style.visibility = visibility;
  };
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let nearest = 0;
    x.forEach((value, i) => {
      if (Math.abs(value - at) < Math.abs(x[nearest] - at)) nearest = i;
    });
    show(nearest, "visible");
  };
  svg.onpointerleave = () => show(x.length - 1, "hidden");
}
const dialog = document.querySelector("dialog");
for (const picture of document.querySelectorAll(".strip img")) {
  picture.onclick = () => {
    dialog.firstChild.src = picture.src;
    dialog.showModal();
  };
}
dialog.onclick = () => dialog.close();
</script>
</body>
</html>
"""
