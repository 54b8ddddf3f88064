"""Two evaluations side by side: what differs, and whether it can be told from noise."""

import html

import tensorflow as tf

from kmax_tf.evaluation import bootstrap
from kmax_tf.evaluation.bootstrap import Difference
from kmax_tf.files import read_json
from kmax_tf.report import report
from kmax_tf.report.chart import chart, percent
from kmax_tf.run_folder import layout

CONFIDENCE = 95  # percent of the interval


def compare_runs(first: str, second: str) -> tuple[dict[str, Difference], list[tuple[str, dict]]]:
    """Compares two evaluations, each named RUN_DIR (its latest step) or RUN_DIR@STEP.

    Returns {"All": `Difference`, ...} in fractions, second less first, and the two metrics.
    Raises InputError if one is not evaluated, or the images or the classes differ.
    """
    runs = [_load(first), _load(second)]
    kept = [
        bootstrap.read(layout.statistics(run_dir, metrics["step"])) for run_dir, metrics in runs
    ]
    return bootstrap.compare(*kept, confidence=CONFIDENCE / 100), runs


def _load(name):
    """(run folder, metrics) of RUN_DIR or RUN_DIR@STEP."""
    run_dir, at, step = name.rpartition("@")
    if at and step.isdigit():
        return run_dir, read_json(layout.metrics(run_dir, int(step)))
    return name, read_json(layout.latest_metrics(name))


def verdict(difference: Difference) -> str:
    """What the interval says, in words."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "within the noise"


def write_comparison(first: str, second: str, path: str) -> dict[str, Difference]:
    """Writes a page with two evaluations side by side; returns the differences of PQ.

    The arguments and what is raised are those of `compare_runs`.
    """
    differences, runs = compare_runs(first, second)
    names = _names(first, second)
    metrics = [metrics for _, metrics in runs]
    sections = [
        _headline(names, metrics, differences),
        report.section("Training", _charts(names, [run_dir for run_dir, _ in runs])),
        report.section("Classes", _class_table(names, metrics)),
        report.section("Pictures", _pictures(names, runs)),
    ]
    report.write_page(path, " and ".join(names), sections)
    return differences


def _names(first, second):
    """How the page calls the two: the last parts of their paths, or all of them where equal."""
    names = [report.run_name(name) for name in (first, second)]
    return names if names[0] != names[1] else [str(first), str(second)]


def _headline(names, metrics, differences):
    rows = []
    for group, suffix in report.GROUPS:
        if group in differences:
            difference = differences[group]
            value, low, high = (f"{100 * number:+.2f}" for number in difference)
            figures = [percent(m.get(f"PQ{suffix}")) for m in metrics]
            rows.append((f"PQ {group}", *figures, value, f"{low} to {high}", verdict(difference)))
    for key in ("AP", "mIoU"):
        pair = [m.get(key) for m in metrics]
        rows.append((key, *map(percent, pair), _change(*pair), "", ""))
    first, second = map(html.escape, names)
    head = ("percent", first, second, "change", f"{CONFIDENCE} % interval", "")
    overall = differences["All"]
    return (
        f'<header><div><p class="run">{second} against {first}</p>'
        f'<p class="pq">{100 * overall.value:+.2f}<small>PQ</small></p>'
        f"<p>{verdict(overall)} · {metrics[0]['num_images']:,} images</p></div>"
        f"<div>{report.table(head, rows, kind='')}"
        '<p class="note">The interval says by how much the change could differ on other images: '
        "both runs are scored on thousands of random draws of the same images. Does it hold 0, "
        "then the change is within the noise.</p></div></header>"
    )


def _change(before, after):
    return "–" if before is None or after is None else f"{after - before:+.2f}"


def _charts(names, run_dirs):
    if run_dirs[0] == run_dirs[1]:
        return ""
    evaluations = [{e["step"]: e for e in report.read_evaluations(run)} for run in run_dirs]
    steps = sorted(evaluations[0].keys() | evaluations[1].keys())
    charts = "".join(
        chart(
            key,
            steps,
            {
                name: [e.get(step, {}).get(key) for step in steps]
                for name, e in zip(names, evaluations, strict=True)
            },
        )
        for key in ("PQ", "AP", "mIoU")
    )
    return charts and f'<div class="grid">{charts}</div>'


def _class_table(names, metrics):
    """The class that changed most comes first."""
    tables = [{c["name"]: c["PQ"] for c in m["classes"]} for m in metrics]
    shared = [name for name in tables[0] if name in tables[1]]
    shared.sort(key=lambda name: -abs(tables[1][name] - tables[0][name]))
    rows = [
        (
            html.escape(name),
            *(percent(t[name]) for t in tables),
            _change(*(t[name] for t in tables)),
        )
        for name in shared
    ]
    head = ("PQ of class", *map(html.escape, names), "change")
    return report.table(head, rows) if rows else ""


def _pictures(names, runs):
    """The images that both kept: themselves, the label, the two predictions.

    A run has pictures of its latest evaluated step alone.
    """
    if any(report.read_evaluations(run_dir)[-1]["step"] != m["step"] for run_dir, m in runs):
        return ""
    places = [layout.pictures(run_dir) for run_dir, _ in runs]
    kept = [{p["folder"]: p for p in metrics["pictures"]} for _, metrics in runs]
    strips = ""
    for stem in (stem for stem in kept[0] if stem in kept[1]):
        files = [(places[0], "image", "image"), (places[0], "label", "label")]
        files += [(place, "prediction", name) for place, name in zip(places, names, strict=True)]
        figures = "".join(
            report.picture(tf.io.gfile.join(place, stem, f"{file}.webp"), title)
            for place, file, title in files
        )
        facts = " · ".join(
            f"{name} PQ {percent(k[stem]['PQ'])}" for name, k in zip(names, kept, strict=True)
        )
        title = html.escape(f"{kept[0][stem]['name']} · {facts}")
        strips += f'<h3>{title}</h3><div class="strip">{figures}</div>'
    return strips
