import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmax_tf.errors import InputError
from kmax_tf.report.chart import draw_chart
from kmax_tf.report.report import write_report

VOID_TAGS = {"meta", "img", "br", "hr", "input", "link"}


class Page(html.parser.HTMLParser):
    """Collects what a page holds and fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.texts, self.charts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID_TAGS:
            self.open.append(tag)
        self.sources += [attrs[key] for key in ("src", "href") if key in attrs]
        if "data-chart" in attrs:
            self.charts.append(json.loads(attrs["data-chart"]))

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def metrics(step, pq):
    return {
        **{"step": step, "PQ": pq, "SQ": 80.0, "RQ": 70.0, "num_images": 200},
        **{"recall": 81.25, "recall_things": 75.5, "recall_stuff": 99.0},
        **{"PQ_things": pq - 5, "SQ_things": 79.0, "RQ_things": 69.0},
        **{"PQ_stuff": 94.0, "SQ_stuff": 95.0, "RQ_stuff": 96.0},
        **{"AP": 33.3, "mIoU": 44.4, "APs": None, "APm": 21.0, "APl": 45.6},
        "classes": [
            class_row("card & zero", PQ=61.239, tp=12, fn=3),
            class_row("card one", PQ=None, SQ=None, RQ=None),
            class_row("paper", isthing=False, PQ=94.0, AP=None),
        ],
        "confusion": [{"true": "card & zero", "predicted": "paper", "share": 12.345}],
        "pictures": [],
    }


def class_row(name, **known):
    row = {"name": name, "isthing": True, "SQ": 81.0, "RQ": 71.0, "AP": 5.0, "IoU": 6.0}
    return {**row, "tp": 0, "fp": 0, "fn": 0, **known}


def write_losses(folder, suffix, values, recall=()):
    writer = tf.summary.create_file_writer(folder, filename_suffix=suffix)
    with writer.as_default():
        for step, value in values.items():
            tf.summary.scalar("loss/total", value, step)
            tf.summary.scalar("learning_rate", 0.001, step)
        for step, value in dict(recall).items():
            tf.summary.scalar("recall", value, step)
    writer.close()


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "cards_small"
    (run / "eval").mkdir(parents=True)
    for step, pq in ((100, 40.0), (200, 61.239)):
        (run / f"eval/metrics-{step:08}.json").write_text(json.dumps(metrics(step, pq)))
    (run / "metrics.json").write_text(json.dumps(metrics(200, 61.239)))
    return run


def test_page(run):
    pixels = np.zeros((8, 8, 3), np.uint8)
    latest = metrics(200, 61.239)
    for stem, count, role in (("000001", 11, "first"), ("000002", 0, "worst")):
        folder = run / "eval/pictures" / stem
        folder.mkdir(parents=True)
        for name in ["image", "prediction", *(f"assignment_{i + 1}" for i in range(count))]:
            Image.fromarray(pixels).save(folder / f"{name}.webp")
        facts = {"PQ": 12.3, "missed": {"card one": 2}, "false": {}}
        latest["pictures"].append({"role": role, "folder": stem, "name": f"{stem}.jpg", **facts})
    (run / "metrics.json").write_text(json.dumps(latest))
    (run / "config.gin").write_text("train.steps = 2400  # <b>")
    write_losses(str(run / "train"), ".0", {10: 3.0, 20: 2.0})

    path = write_report(str(run))
    assert path == str(run / "report.html")
    text = (run / "report.html").read_text()
    page = Page(text)
    assert "61.24" in page.texts  # the headline, a text of its own
    for name in ("cards_small", "card & zero", "card one", "paper", "train.steps = 2400  # <b>"):
        assert name in page.texts
    assert "61.239" not in text
    pictures = [source for source in page.sources if source.startswith("data:image/webp;base64,")]
    assert len(pictures) == 2 + 11 + 2 and pictures == page.sources
    assert not re.search(r"(src|href)=.http|url\(|@import", text)
    decoders = [t for t in page.texts if t.startswith("clusters, decoder")]
    assert decoders == [f"clusters, decoder {i}" for i in range(1, 12)]
    assert str(run.parent) not in text
    assert [len(chart["x"]) for chart in page.charts] == [2, 2, 2, 2]
    assert "40" in page.charts[0]["notes"][0] and "61.24" in page.charts[0]["notes"][1]
    assert "81.25" in page.charts[1]["notes"][0] and "75.50" in page.charts[1]["notes"][1]
    assert "33.30" in page.charts[2]["notes"][0] and "44.40" in page.charts[2]["notes"][1]
    assert "learning_rate" not in text
    for title in ("Pictures", "Failure cases", "Classes", "Sizes", "Confusion"):
        assert title in page.texts
    assert "Best images" not in page.texts  # there is none
    assert "000002.jpg · PQ 12.30 · missed: 2 card one" in page.texts
    assert "12.35 %" in page.texts and "45.60" in page.texts


def test_events_of_a_resumed_run_are_merged(run):
    write_losses(str(run / "train"), ".0", {10: 3.5, 20: 2.5, 30: 2.0})
    first = next((run / "train").iterdir())
    first.rename(run / "train/events.out.tfevents.1000000000.a")
    write_losses(str(run / "train"), ".1", {20: 2.25, 40: float("nan"), 50: 1.5})
    second = next(p for p in (run / "train").iterdir() if p.name.endswith(".1"))
    content = second.read_bytes()
    write_report(str(run))
    notes = Page((run / "report.html").read_text()).charts[3]["notes"]
    assert [re.sub("<.*?>", "", note).split() for note in notes] == [
        ["step", "10", "3.50"],
        ["step", "20", "2.25"],
        ["step", "40", "–"],
        ["step", "50", "1.50"],
    ]  # and not 30, of the steps that were repeated
    second.write_bytes(content[:-90])  # cut off within a record
    write_report(str(run))
    notes = Page((run / "report.html").read_text()).charts[3]["notes"]
    assert len(notes) == 3 and "2.25" in notes[1]


def test_only_metrics(run):
    for path in (run / "eval").iterdir():
        path.unlink()
    write_report(str(run))
    page = Page((run / "report.html").read_text())
    assert "61.24" in page.texts and not page.sources and not page.charts


def test_headline_shows_things_and_stuff_beside_pq(run):
    write_report(str(run))
    text = (run / "report.html").read_text()
    figures = re.findall(r'<p class="pq">(.*?)<small>(.*?)</small></p>', text)
    assert figures == [("61.24", "PQ"), ("56.24", "things"), ("94.00", "stuff")]


def test_baseline_and_lost_segments(run):
    baseline = {"name": "Otsu's threshold", "num_images": 24}
    baseline |= {"PQ": 40.14, "PQ_things": 35.2, "PQ_stuff": None}
    (run / "eval/baseline.json").write_text(json.dumps(baseline))
    (run / "segments.txt").write_text("segments: 10\n    5 are small <b>")
    write_report(str(run))
    texts = Page((run / "report.html").read_text()).texts
    line = "trivial baseline (Otsu's threshold): PQ 40.1 (things 35.2, stuff -)"
    assert f"{line}, on the first 24 images" in texts
    assert "segments: 10" in texts and "    5 are small <b>" in texts


def test_recall_of_training_has_a_chart(run):
    write_losses(str(run / "train"), ".0", {10: 3.0}, {10: 0.25, 20: 0.5})
    write_report(str(run))
    page = Page((run / "report.html").read_text())
    at = page.texts.index("recall in training: share of segments found")
    assert at < page.texts.index("loss: total, with all decoders")
    notes = [re.sub("<.*?>", "", note).split() for note in page.charts[3]["notes"]]
    assert notes == [["step", "10", "0.25"], ["step", "20", "0.50"]]


def test_what_the_clusters_do_has_a_table_and_charts(run):
    qualities = {100: (None, 11.11), 200: (20.126, 33.33)}
    for step, (first, second) in qualities.items():
        evaluation = metrics(step, 61.239)
        rest = {"num_images": 1234}
        evaluation["decoders"] = [
            {"PQ": first, "label_PQ": 50.0, "changed": None, "in_use": 12.5} | rest,
            {"PQ": second, "label_PQ": 90.5, "changed": 41.25, "in_use": 9.0} | rest,
        ]
        (run / f"eval/metrics-{step:08}.json").write_text(json.dumps(evaluation))
        (run / "metrics.json").write_text(json.dumps(evaluation))
    write_report(str(run))
    text = (run / "report.html").read_text()
    section = text[text.index("What the clusters do") :]
    lines = [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in section.split("<tr>")[2:5]]
    assert lines == [
        ["1", "20.13", "50.00", "–", "12.50"],
        ["2", "33.33", "90.50", "41.25", "9.00"],
        ["final prediction", "61.24", "", "", ""],
    ]
    assert "on the first 1,234 images" in section
    quality, changed, in_use = (chart["notes"] for chart in Page(text).charts[3:])
    assert "decoder 1 –" in quality[0] and "decoder 2 11.11" in quality[0]
    assert "decoder 1 20.13" in quality[1] and "decoder 2 41.25" in changed[1]
    assert "decoder 1 12.50" in in_use[0]


def test_evaluations_of_older_versions_know_nothing_of_clusters(run):
    write_report(str(run))
    assert "What the clusters do" not in (run / "report.html").read_text()
    decoder = {"PQ": 5.0, "label_PQ": 50.0, "changed": None, "in_use": 3.0, "num_images": 200}
    latest = metrics(300, 62.0) | {"decoders": [decoder]}
    for name in ("metrics.json", "eval/metrics-00000300.json"):
        (run / name).write_text(json.dumps(latest))
    write_report(str(run))
    notes = Page((run / "report.html").read_text()).charts[3]["notes"]
    assert [re.sub("<.*?>", "", note).split()[-1] for note in notes] == ["–", "–", "5"]


def test_no_curve_is_left_out():
    curves = {f"decoder {i}": [i, i + 1] for i in range(1, 13)}
    assert draw_chart("PQ", [1, 2], curves).count("<polyline") == 12


@pytest.mark.parametrize("step", [0, 1, 3, 100, 10**6])
def test_chart_of_a_single_point_shows_it_inside(step):
    svg = draw_chart("PQ", [step], {"all": [40.0], "things": [None], "stuff": [0.0]})
    dots = re.findall(r'<circle cx="(.*?)" cy="(.*?)" r="4"', svg)
    assert len(dots) == 2 and dots[0][0] == dots[1][0]
    assert float(dots[0][0]) == 192  # the middle
    assert re.findall(r'<text x="([^"]*)" y="190"[^>]*>(.*?)<', svg) == [("192.0", f"{step:,}")]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_long_names_fit_a_phone(run, tmp_path):
    """390 pixels are the width of a phone; a page that is wider scrolls to the side."""
    name = "20261128_115959_" * 15 + ".jpg"
    latest = metrics(200, 61.239)
    facts = {"role": "first", "folder": "1", "name": name, "PQ": 1.0, "false": {}}
    latest["pictures"] = [{**facts, "missed": {"class_" * 40: 2}}]
    latest["classes"].append(class_row("class_" * 40, PQ=1.0))
    latest["confusion"].append({"true": "class_" * 40, "predicted": "x" * 200, "share": 3})
    long = run.rename(run.parent / ("run_" * 60))
    (long / "metrics.json").write_text(json.dumps(latest))
    (long / "config.gin").write_text("x" * 500)
    write_report(str(long))
    page = (long / "report.html").read_text()
    frame = f"<iframe srcdoc='{html.escape(page, quote=True)}' width=390 height=800></iframe>"
    script = (
        "<script>onload = () => document.body.textContent = 'wide: ' +"
        "document.querySelector('iframe').contentDocument.documentElement.scrollWidth</script>"
    )
    (tmp_path / "frame.html").write_text(f"<meta charset=utf-8>{frame}{script}")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    shown = subprocess.run(
        [*command, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120
    )
    assert 300 < int(re.findall(r"wide: (\d+)", shown.stdout)[0]) <= 390


def test_many_steps_are_thinned_but_the_last_stays(run):
    write_losses(str(run / "train"), ".0", dict.fromkeys(range(1001), 1.0))
    write_report(str(run))
    chart = Page((run / "report.html").read_text()).charts[3]
    assert len(chart["x"]) <= 401 and chart["notes"][-1].startswith("step 1,000 ")


def test_without_metrics(tmp_path):
    with pytest.raises(InputError, match="metrics.json: missing; evaluate"):
        write_report(str(tmp_path))
    (tmp_path / "metrics.json").write_text('{"step": 3}')
    with pytest.raises(InputError, match='metrics.json: field "num_images"'):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()
