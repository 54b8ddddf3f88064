"""The report of a study: a table, PQ over the steps with bands, and pictures of every variant."""

import collections
import html
import itertools
import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import stats

from kmax_tf.files import read_json
from kmax_tf.report import clusters, html_page
from kmax_tf.report.chart import draw_chart, format_percent
from kmax_tf.run_folder import layout
from kmax_tf.studies import study
from kmax_tf.studies.study import Study

CONFIDENCE = 95  # percent of the intervals
CLUSTER_HEAD = ("variant", *clusters.HEAD)
HEAD = (
    "variant",
    "learning rate",
    "seeds",
    "PQ at the end",
    "difference to the first",
    "PQ over the schedule",
    "difference to the first",
)


class Figures(NamedTuple):
    """One measure of a variant, in percent, and its difference to the first variant."""

    values: list[float]  # one for each seed
    difference: float | None  # mean over the common seeds
    interval: tuple[float, float] | None  # of the difference, by Student's t over these seeds


class Row(NamedTuple):
    """A variant at its best learning rate."""

    name: str
    learning_rate: float
    end: Figures  # PQ at the last step
    mean_over_schedule: Figures  # mean PQ over the evaluated steps


def plan(chosen: Study, out: str, seeds: int) -> str:
    """Lists the runs of a study, one a line, and says which are finished."""
    known, jobs, rates = study.finished(out), study.search(chosen), {}
    for variant in chosen.variants:
        searched = [job for job in jobs if job.variant == variant]
        if all(job.digest in known for job in searched):
            runs = [known[job.digest] | job._asdict() for job in searched]
            rates[variant] = study.best_rate(runs)
    lines = [
        f"{'finished' if job.digest in known else 'to run  '}  learning rate {job.learning_rate:g}"
        f", seed {job.seed}: {job.variant}"
        for job in [*jobs, *study.other_seeds(chosen, rates, seeds)]
    ]
    if chosen.encoder:
        lines.insert(0, "first, unless it exists, the pixel encoder that all runs start from")
    if more := (len(chosen.variants) - len(rates)) * (seeds - 1):
        lines.append(f"then {more} more: seeds 1 to {seeds - 1}, each at its best rate")
    return "\n".join(lines)


def chosen_runs(variant: dict) -> list[dict]:
    """The runs of a variant at its best learning rate, sorted by seed."""
    rate = study.best_rate(variant["runs"])
    runs = (run for run in variant["runs"] if run["learning_rate"] == rate)
    return sorted(runs, key=lambda run: run["seed"])


def rows(result: dict) -> list[Row]:
    """The rows of the table, from the content of study.json."""
    runs = _chosen(result)
    first = next(iter(runs.values()))
    return [
        Row(
            name,
            members[0]["learning_rate"],
            end=_compare(members, first, lambda run: run["PQ"][-1]),
            mean_over_schedule=_compare(members, first, study.mean_over_schedule),
        )
        for name, members in runs.items()
    ]


def _compare(members, first, figure):
    """The `Figures` of a variant's runs, against the first variant's runs of the same seeds."""
    values = [figure(run) for run in members]
    if members is first:
        return Figures(values, None, None)
    others = {run["seed"]: figure(run) for run in first}
    pairs = [v - others[r["seed"]] for v, r in zip(values, members) if r["seed"] in others]
    if len(pairs) < 2:
        return Figures(values, float(np.mean(pairs)) if pairs else None, None)
    interval = stats.ttest_1samp(pairs, 0).confidence_interval(CONFIDENCE / 100)
    return Figures(values, float(np.mean(pairs)), tuple(map(float, interval)))


def text(result: dict) -> str:
    """Returns the question and the tables, as Markdown; old runs have no table of the clusters."""
    runs = _chosen(result)
    parts = [result["question"], _markdown(HEAD, map(_cells, rows(result))), *_origins(runs)]
    tables = ((_step_head(runs), _step_lines(runs)), (CLUSTER_HEAD, _cluster_lines(runs)))
    parts += [_markdown(head, lines) for head, lines in tables if lines]
    return "\n\n".join(parts)


def _origins(runs):
    """One sentence if the runs differ in code, TensorFlow or encoder, else nothing."""
    counts = collections.Counter()
    for run in itertools.chain.from_iterable(runs.values()):
        origin = run.get("origin", {"an older version": "of kmax_tf"})
        counts[", ".join(f"{key} {value}" for key, value in origin.items())] += 1
    parts = [f"{number} runs are of {origin}" for origin, number in counts.items()]
    return [f"Not all runs have one origin: {'; '.join(parts)}."] if len(parts) > 1 else []


def _markdown(head, lines):
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _chosen(result):
    """The runs of each variant at its best learning rate, {name: runs}."""
    return {variant["name"]: chosen_runs(variant) for variant in result["variants"]}


def _cells(row):
    cells = [row.name, f"{row.learning_rate:g}", str(len(row.end.values))]
    return [*cells, *_figure_cells(row.end), *_figure_cells(row.mean_over_schedule)]


def _figure_cells(figures):
    """The mean with its deviation, and the difference with its interval."""
    deviation = f" ± {np.std(figures.values, ddof=1):.1f}" if len(figures.values) > 1 else ""
    interval = " ({:+.1f} to {:+.1f})".format(*figures.interval) if figures.interval else ""
    difference = "" if figures.difference is None else f"{figures.difference:+.1f}{interval}"
    return f"{np.mean(figures.values):.1f}{deviation}", difference


def _step_head(runs):
    first, *others = runs
    return ["step", first, *(title for name in others for title in (name, "difference"))]


def _step_lines(runs):
    """The lines below `_step_head`: PQ at each step that all runs have, if there are several."""
    steps = sorted(set.intersection(*(set(r["steps"]) for m in runs.values() for r in m)))
    lines, first = [], next(iter(runs.values()))
    for step in steps if len(steps) > 1 else ():

        def quality(run, step=step):
            return run["PQ"][run["steps"].index(step)]

        compared = [_figure_cells(_compare(members, first, quality)) for members in runs.values()]
        lines.append([str(step), compared[0][0], *(cell for pair in compared[1:] for cell in pair)])
    return lines


def write(result: dict, out: str) -> str:
    """Writes OUT/NAME/report.html, which loads no other file, and returns its path."""
    runs = _chosen(result)
    cells = [[html.escape(cell) for cell in _cells(row)] for row in rows(result)]
    title = html.escape(result["name"])
    sections = [
        f'<header><div><p class="run">study {title}</p>'
        f"<h2>{html.escape(result['question'])}</h2><p>{html.escape(result['paper'])}</p>"
        '<p class="note">Mean ± standard deviation over the seeds. PQ over the schedule is the mean'
        " over the evaluated steps. Differences compare the same seeds, with their"
        f" {CONFIDENCE} % interval by Student's t.</p></div></header>",
        html_page.section("Result", html_page.table(HEAD, cells, kind="") + _origin_note(runs)),
        html_page.section("PQ over the steps", _step_table(runs)),
        html_page.section("Learning rate search", _search_table(result)),
        html_page.section("Training", _charts(runs)),
        html_page.section("What the clusters do", _clusters(runs)),
        html_page.section("Pictures", _pictures(runs, out)),
    ]
    path = layout.report(os.path.join(out, result["name"]))
    return html_page.write_page(path, f"Study {result['name']}", sections)


def _origin_note(runs):
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in _origins(runs))


def _step_table(runs):
    head = [html.escape(title) for title in _step_head(runs)]
    return html_page.table(head, lines, kind="") if (lines := _step_lines(runs)) else ""


def _search_table(result):
    """PQ of the first seed over the schedule, at each learning rate."""
    searched = [
        {r["learning_rate"]: study.mean_over_schedule(r) for r in v["runs"] if r["seed"] == 0}
        for v in result["variants"]
    ]
    rates = sorted(set().union(*searched))
    lines = [
        (html.escape(variant["name"]), *(format_percent(qualities.get(rate)) for rate in rates))
        for variant, qualities in zip(result["variants"], searched, strict=True)
    ]
    return html_page.table(
        ("PQ over the schedule", *(f"{rate:g}" for rate in rates)), lines, kind=""
    )


def _charts(runs):
    """Curves of the mean over the seeds, with bands from the smallest to the largest."""
    steps = sorted({step for members in runs.values() for run in members for step in run["steps"]})
    charts = ""
    for key, title in (("PQ", "PQ"), ("PQ_things", "PQ of things"), ("PQ_stuff", "PQ of stuff")):
        curves, bands = {}, {}
        for name, members in runs.items():
            by_step = [dict(zip(run["steps"], run[key], strict=True)) for run in members]
            values = [[b[s] for b in by_step if b.get(s) is not None] for s in steps]
            curves[name] = [np.mean(v) if v else None for v in values]
            bands[name] = [(min(v), max(v)) if v else None for v in values]
        charts += draw_chart(title, steps, curves, bands)
    return f'<div class="grid">{charts}</div>'


def _decoders(members):
    """The figures of the clusters at each step, {step: "decoders"}, as means over the runs."""
    found = {}
    for run in members:
        for step, decoders in zip(run["steps"], run.get("decoders", [])):
            found.setdefault(step, []).append(decoders)
    return {
        step: [
            {key: _mean([figures[key] for figures in same]) for key in clusters.FIGURES}
            for same in zip(*found[step])
        ]
        for step in sorted(found)
    }


def _mean(values):
    return None if None in values else float(np.mean(values))


def _cluster_lines(runs):
    """The lines below CLUSTER_HEAD: each decoder of each variant at its last step."""
    by_step = {name: _decoders(members) for name, members in runs.items()}
    last = {name: [*found.values()][-1] for name, found in by_step.items() if found}
    return [(name, *line) for name, decoders in last.items() for line in clusters.lines(decoders)]


def _clusters(runs):
    """The table of the clusters, and charts of each variant."""
    lines = [(html.escape(name), *cells) for name, *cells in _cluster_lines(runs)]
    if not lines:
        return ""
    charts = ""
    for name, members in runs.items():
        found = _decoders(members)
        charts += clusters.charts([*found], [*found.values()], f"{name}: ")
    return f'{html_page.table(CLUSTER_HEAD, lines, kind="")}<div class="grid">{charts}</div>'


def _pictures(runs, out):
    """The predictions and clusters of each variant's first seed, for the same images."""
    folders = {name: study.run_dir_of(out, members[0]["digest"]) for name, members in runs.items()}
    metrics = [layout.latest_metrics(folder) for folder in folders.values()]
    metrics = [path for path in metrics if tf.io.gfile.exists(path)]
    entries = read_json(metrics[0])["pictures"] if metrics else []
    strips = ""
    for entry in (entry for entry in entries if entry["role"] == "first"):
        place = os.path.join(layout.pictures(os.path.dirname(metrics[0])), entry["folder"])
        strips += f"<h3>{html.escape(entry['name'])}</h3>"
        strips += html_page.strip(place, {"image": "image", "label": "label"})
        for name, folder in folders.items():
            place = os.path.join(layout.pictures(folder), entry["folder"])
            strips += html_page.strip(place, {"prediction": name} | html_page.cluster_titles(place))
    return strips
