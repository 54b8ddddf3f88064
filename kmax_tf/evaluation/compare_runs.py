"""Compares two evaluations: their differences, and whether these are more than noise."""

import html

import tensorflow as tf

from kmax_tf.evaluation import bootstrap
from kmax_tf.evaluation.bootstrap import Difference
from kmax_tf.files import read_json
from kmax_tf.report import html_page
from kmax_tf.report.chart import draw_chart, format_percent
from kmax_tf.report.quality import GROUPS
from kmax_tf.run_folder import layout, results

CONFIDENCE = 95  # percent


def compare_runs(first: str, second: str) -> tuple[dict[str, Difference], list[tuple[str, dict]]]:
    """Compares two evaluations, each named RUN_DIR (its latest step) or RUN_DIR@STEP.

    Returns:
        {"All": `Difference`, ...} in fractions, second minus first, and a list with the run folder
        and the metrics of both.

    Raises:
        InputError: an evaluation is missing, or the images or the classes differ.
    """
    runs = [_load(first), _load(second)]
    if len({m["records"] for _, m in runs if "records" in m}) > 1:
        print(f"{first} and {second} were evaluated on different records; labels may differ")
    counts = [bootstrap.read(layout.image_counts(run, m["step"])) for run, m in runs]
    return bootstrap.compare(*counts, confidence=CONFIDENCE / 100), runs


def _load(name):
    """(run folder, metrics) of RUN_DIR or RUN_DIR@STEP; an existing folder is a RUN_DIR."""
    run_dir, at, step = name.rpartition("@")
    if at and step.isdecimal() and not tf.io.gfile.isdir(name):
        return run_dir, read_json(layout.metrics(run_dir, int(step)))
    return name, read_json(layout.latest_metrics(name))


def verdict(difference: Difference) -> str:
    """Says in words what the interval means."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "within the noise"


def write_comparison(first: str, second: str, path: str) -> dict[str, Difference]:
    """Writes a page with two evaluations side by side, and returns their differences of PQ.

    Arguments and errors are those of `compare_runs`.
    """
    differences, runs = compare_runs(first, second)
    names = _names(first, second)
    metrics = [metrics for _, metrics in runs]
    sections = [
        _headline(names, metrics, differences),
        html_page.section("Training", _charts(names, [run_dir for run_dir, _ in runs])),
        html_page.section("Classes", _class_table(names, metrics)),
        html_page.section("Pictures", _pictures(names, runs)),
    ]
    html_page.write_page(path, " and ".join(names), sections)
    return differences


def _names(first, second):
    """The names of the two on the page: the last parts of their paths, or the paths if equal."""
    names = [results.run_name(name) for name in (first, second)]
    return names if names[0] != names[1] else [str(first), str(second)]


def _headline(names, metrics, differences):
    rows = []
    for group, suffix in GROUPS:
        if group in differences:
            difference = differences[group]
            value, low, high = (f"{100 * number:+.2f}" for number in difference)
            figures = [format_percent(m.get(f"PQ{suffix}")) for m in metrics]
            rows.append((f"PQ {group}", *figures, value, f"{low} to {high}", verdict(difference)))
    for key in ("AP", "mIoU"):
        pair = [m.get(key) for m in metrics]
        rows.append((key, *map(format_percent, pair), _change(*pair), "", ""))
    first, second = map(html.escape, names)
    head = ("percent", first, second, "change", f"{CONFIDENCE} % interval", "")
    overall = differences["All"]
    return (
        f'<header><div><p class="run">{second} against {first}</p>'
        f'<p class="pq">{100 * overall.value:+.2f}<small>PQ</small></p>'
        f"<p>{verdict(overall)} · {metrics[0]['num_images']:,} images</p></div>"
        f"<div>{html_page.table(head, rows, kind='')}"
        '<p class="note">The interval estimates how the change would vary with other images, from '
        "thousands of random draws of the same images for both runs. If the interval contains 0, "
        "the change is within the noise of the images. Another seed of the same setting may change "
        "more; <code>kmax study</code> measures that.</p></div></header>"
    )


def _change(before, after):
    return "–" if before is None or after is None else f"{after - before:+.2f}"


def _charts(names, run_dirs):
    if run_dirs[0] == run_dirs[1]:
        return ""
    evaluations = [{e["step"]: e for e in results.read_evaluations(run)} for run in run_dirs]
    steps = sorted(evaluations[0].keys() | evaluations[1].keys())
    charts = ""
    for key in ("PQ", "AP", "mIoU"):
        curves = ([e.get(step, {}).get(key) for step in steps] for e in evaluations)
        charts += draw_chart(key, steps, dict(zip(names, curves, strict=True)))
    return charts and f'<div class="grid">{charts}</div>'


def _class_table(names, metrics):
    """The classes of both, sorted by how much their PQ changed."""
    tables = [{c["name"]: c["PQ"] for c in m["classes"]} for m in metrics]
    shared = [name for name in tables[0] if name in tables[1]]
    shared.sort(key=lambda name: -abs(tables[1][name] - tables[0][name]))
    rows = [
        (
            html.escape(name),
            *(format_percent(t[name]) for t in tables),
            _change(*(t[name] for t in tables)),
        )
        for name in shared
    ]
    head = ("PQ of class", *map(html.escape, names), "change")
    return html_page.table(head, rows) if rows else ""


def _pictures(names, runs):
    """The images that both runs have: image, label and the two predictions.

    A run has pictures only of its latest evaluated step.
    """
    if any(results.read_evaluations(run_dir)[-1]["step"] != m["step"] for run_dir, m in runs):
        return ""
    folders = [layout.pictures(run_dir) for run_dir, _ in runs]
    entries = [{p["folder"]: p for p in metrics["pictures"]} for _, metrics in runs]
    strips = ""
    for stem in (stem for stem in entries[0] if stem in entries[1]):
        files = [(folders[0], "image", "image"), (folders[0], "label", "label")]
        files += [(folder, "prediction", name) for folder, name in zip(folders, names, strict=True)]
        figures = "".join(
            html_page.picture(tf.io.gfile.join(folder, stem, f"{file}.webp"), title)
            for folder, file, title in files
        )
        facts = " · ".join(
            f"{name} PQ {format_percent(e[stem]['PQ'])}"
            for name, e in zip(names, entries, strict=True)
        )
        title = html.escape(f"{entries[0][stem]['name']} · {facts}")
        strips += f'<h3>{title}</h3><div class="strip">{figures}</div>'
    return strips
