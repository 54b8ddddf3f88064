"""Studies: which runs are trained, which are reused, and what the table says."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.files import read_json, write_atomic
from kmax_tf.run_folder import checkpoint, layout
from kmax_tf.studies import study, study_report

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ("digits", "digits_1200", "encoder", "nuclei_1000")  # what studies train
NAMES = sorted(p.stem for p in (ROOT / "gin/studies").glob("*.gin") if p.stem not in SHARED)
RESULTS = sorted(ROOT.glob("docs/studies/*/study.json"))
PQ = {  # at the last step, by variant, learning rate and seed
    ("a", 0.1): (20.0,),
    ("a", 0.2): (30.0, 32.0, 31.0),
    ("b", 0.1): (50.0, 56.0, 53.0),
    ("b", 0.2): (40.0,),
}


@pytest.fixture
def two_variants():
    number = "kmax_decoder.ClusterPath.num_clusters"
    variants = {"a": (f"{number} = 8",), "b": (f"{number} = 9",)}
    return study.Study("Is b better?", "Yes.", variants, encoder="", learning_rates=(0.1, 0.2))


@pytest.fixture
def trained(monkeypatch):
    """Replaces training: lists the runs; their PQ is 0 at the first step, then as in the table."""
    asked = []

    def run_one(job, initial, out, threads):
        pq = PQ[job.variant, job.learning_rate][job.seed]
        asked.append((job.variant, job.learning_rate, job.seed))
        curve = [0.0, pq]
        curves = {"PQ": curve, "PQ_things": curve, "PQ_stuff": curve}
        return {"digest": job.digest, "minutes": 1.0, "steps": [5, 10], **curves}

    monkeypatch.setattr(study, "_run_one", run_one)
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_each_study_is_made_of_valid_experiments(name):
    chosen = study.load(name)
    digests = [job.digest for job in study.search(chosen)]
    assert len(set(digests)) == len(chosen.variants) * len(chosen.learning_rates)
    lines = study.commands(name, chosen, seeds=2)
    run_dirs = [word for line in lines for word in shlex.split(line) if "--run_dir" in word]
    assert len(lines) == 4 * len(chosen.variants) == 2 * len(set(run_dirs))


def test_full_size_commands_make_the_experiments_that_have_a_file_of_their_own():
    def resolved(gin_file, bindings=()):
        config.load(Experiment, gin_file, bindings)
        return config.resolved()

    lines = study.commands("dual_path", study.load("dual_path"), seeds=1)[::2]
    for line, name in zip(lines, ["cross_attention", None, "dual_path", "", "dual_path_kmeans"]):
        if name is None:  # of the appendix, without a gin file
            continue
        words = shlex.split(line)
        gin = [word.removeprefix("--gin=") for word in words if word.startswith("--gin=")]
        path = "_".join(filter(None, ["gin/experiments/coco_resnet50", name])) + ".gin"
        own = resolved(path, ["experiment.Experiment.seed = 0"])
        assert resolved("gin/experiments/coco_resnet50.gin", gin) == own


def test_each_variant_is_searched_alike_and_its_best_rate_gets_the_other_seeds(
    two_variants, trained, tmp_path
):
    study.run("s", two_variants, str(tmp_path), seeds=3, jobs=1)
    assert trained[:4] == [("a", 0.1, 0), ("a", 0.2, 0), ("b", 0.1, 0), ("b", 0.2, 0)]
    assert trained[4:] == [("a", 0.2, 1), ("b", 0.1, 1), ("a", 0.2, 2), ("b", 0.1, 2)]


def test_the_table_has_the_figures_of_scipy(two_variants, trained, tmp_path):
    result = study.run("s", two_variants, str(tmp_path), seeds=3, jobs=1)
    assert read_json(str(tmp_path / "s/study.json")) == result
    a, b = study_report.rows(result)
    assert (a.learning_rate, b.learning_rate) == (0.2, 0.1)
    assert b.end.values == [50.0, 56.0, 53.0] and b.mean_over_schedule.values == [25.0, 28.0, 26.5]
    test = stats.ttest_rel([50, 56, 53], [30, 32, 31])
    assert b.end.difference == 22.0
    np.testing.assert_allclose(b.end.interval, test.confidence_interval(0.95))
    assert "| b | 0.1 | 3 | 53.0 ± 3.0 | +22.0 (+17.0 to +27.0) |" in study_report.text(result)
    page = pathlib.Path(study_report.write(result, str(tmp_path))).read_text()
    assert "Is b better?" in page and "+22.0 (+17.0 to +27.0)" in page and "<polygon" in page


def test_differences_are_between_runs_of_one_seed(two_variants, trained, tmp_path):
    result = study.run("s", two_variants, str(tmp_path), seeds=3, jobs=1)
    _, b = result["variants"]
    b["runs"] = [run for run in b["runs"] if run["seed"] != 1]
    assert study_report.rows(result)[1].end.difference == (50 - 30 + 53 - 31) / 2
    assert "| 10 | 31.0 ± 1.0 | 51.5 ± 2.1 | +21.0 (+8.3 to +33.7) |" in study_report.text(result)


def test_clusters_are_means_over_the_seeds(two_variants, trained, tmp_path, monkeypatch):
    run_one = study._run_one

    def with_clusters(job, *others):
        if job.variant == "a":  # its runs are older
            return run_one(job, *others)
        decoders = [
            {"PQ": 10.0 + job.seed, "label_PQ": 50.0, "changed": None, "in_use": 4.0},
            {"PQ": 20.0, "label_PQ": 90.0, "changed": 30.0 + 2 * job.seed, "in_use": 2.5},
        ]
        return run_one(job, *others) | {"decoders": [[], decoders]}

    monkeypatch.setattr(study, "_run_one", with_clusters)
    result = study.run("s", two_variants, str(tmp_path), seeds=3, jobs=1)
    lines = study_report.text(result).splitlines()[-4:]
    assert lines[0].startswith("| variant | decoder | PQ")
    assert lines[2:] == [
        "| b | 1 | 11.00 | 50.00 | – | 4.00 |",
        "| b | 2 | 20.00 | 90.00 | 32.00 | 2.50 |",
    ]
    page = pathlib.Path(study_report.write(result, str(tmp_path))).read_text()
    assert "<td>32.00</td>" in page and "b: clusters in use" in page
    assert "a: clusters in use" not in page


def test_nothing_finished_is_run_again_not_even_for_another_study(two_variants, trained, tmp_path):
    out = str(tmp_path)
    study.run("first", two_variants, out, seeds=2, jobs=2)
    trained.clear()
    assert study.run("first", two_variants, out, seeds=2, jobs=2)
    assert not trained
    study.run("second", two_variants, out, seeds=3, jobs=2)
    assert sorted(trained) == [("a", 0.2, 2), ("b", 0.1, 2)]
    assert study_report.plan(two_variants, out, 3).count("finished") == 4 + 2 * 2
    planned = study_report.plan(two_variants, out, 4).splitlines()
    assert (
        [line for line in planned if "to run" in line]
        == planned[-2:]
        == [
            "to run    learning rate 0.2, seed 3: a",
            "to run    learning rate 0.1, seed 3: b",
        ]
    )
    nothing = study_report.plan(two_variants, str(tmp_path / "new"), 3)
    assert nothing.count("to run") == 4
    assert nothing.endswith("then 4 more: seeds 1 to 2, each at its best rate")


def test_the_encoder_is_there_whenever_something_is_run(
    two_variants, trained, tmp_path, monkeypatch
):
    """Also if the search is known only from study.json, and one more seed is wanted."""
    asked, given, run_one = [], set(), study._run_one
    monkeypatch.setattr(study, "_trained_encoder", lambda *args: asked.append(args) or "ckpt-0")
    monkeypatch.setattr(study, "_run_one", lambda *args: given.add(args[1]) or run_one(*args))
    chosen = dataclasses.replace(two_variants, encoder="gin/studies/encoder.gin")
    for seeds, needed in ((2, True), (2, False), (3, True)):
        study.run("s", chosen, str(tmp_path), seeds=seeds, jobs=2)
        assert bool(asked) == needed
        asked.clear()
    assert given == {"ckpt-0"}


def test_stored_runs_of_another_encoder_are_counted(
    two_variants, trained, tmp_path, monkeypatch, capsys
):
    """study.json alone goes to another machine, whose encoder rounds differently."""

    model = tf.Module()
    model.pixel_encoder = tf.Module()
    model.pixel_encoder.kernel = tf.Variable(0.0)
    monkeypatch.setattr(Experiment, "build_model", lambda experiment: model)

    def train(name, words, run_dir, threads):
        checkpoint.save(tf.train.Checkpoint(model=model), run_dir, 1, 1)

    monkeypatch.setattr(study, "_run_verb", train)
    chosen = dataclasses.replace(two_variants, encoder=two_variants.base)
    said = []
    for seeds in (1, 2, 3):
        study.run("s", chosen, str(tmp_path), seeds=seeds, jobs=1)
        said += re.findall("training the pixel encoder.*", capsys.readouterr().out)
        if seeds == 2:  # only study.json is kept
            shutil.rmtree(tmp_path / "runs")
    line = "training the pixel encoder that all runs start from"
    assert said == [line, f"{line}; 6 stored runs started from one that is not here"]


def test_a_step_that_an_interruption_saved_is_not_of_the_schedule(
    two_variants, tmp_path, monkeypatch
):
    words = []

    def run_verb(name, command, run_dir, threads):
        words.extend(command)
        for step in (*evaluated, 130):
            metrics = dict(step=step, PQ=step / 10, PQ_things=None, PQ_stuff=1.0)
            write_atomic(layout.metrics(run_dir, step), json.dumps(metrics))
        write_atomic(layout.provenance(run_dir), '{"revision": "abc", "tensorflow": "2.20.0"}')
        tf.io.gfile.makedirs(layout.checkpoints(run_dir))

    monkeypatch.setattr(study, "_run_verb", run_verb)
    job, *_ = study.search(two_variants)
    evaluated = [100, 300, 400, 500, 600]
    with pytest.raises(InputError, match=r"^a, learning rate 0.1, seed 0: .* steps \[200\]; st"):
        study._run_one(job, "", str(tmp_path), 1)
    assert not study.finished(str(tmp_path))
    evaluated.append(200)
    entry = study._run_one(job, "", str(tmp_path), 1)
    assert entry["steps"] == [100, 200, 300, 400, 500, 600]
    assert (entry["PQ"], entry["PQ_things"]) == ([10, 20, 30, 40, 50, 60], [None] * 6)
    assert entry["origin"] == {"revision": "abc", "tensorflow": "2.20.0", "encoder": None}
    # The interruption's checkpoint does not take the place of the first one.
    (kept,) = {w for w in words if "checkpoints_kept" in w}
    assert int(kept.split("=")[-1]) > config.load(Experiment, job.gin_file).checkpoints_kept


def test_runs_start_from_one_path_wherever_the_study_is_called(
    two_variants, trained, tmp_path, monkeypatch
):
    """Else an interrupted run does not resume: its configuration names another checkpoint."""
    monkeypatch.setattr(study.checkpoint, "complete", lambda folder: [f"{folder}/ckpt-0"])
    monkeypatch.setattr(study.checkpoint, "path_of", lambda folder, step: f"{folder}/ckpt-0")
    given, run_one = set(), study._run_one
    monkeypatch.setattr(study, "_run_one", lambda *args: given.add(args[1]) or run_one(*args))
    chosen = dataclasses.replace(two_variants, encoder="gin/studies/encoder.gin")
    for folder, out in (("studies", "."), ("", "studies"), ("", str(tmp_path / "studies"))):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        study.run(f"s{len(trained)}", chosen, out, seeds=1, jobs=1)
        for path in (tmp_path / "studies").glob("s*/study.json"):
            path.unlink()
    assert len(trained) == 12 and len(given) == 1


def test_runs_at_the_same_time_share_the_cores(two_variants, trained, tmp_path, monkeypatch):
    run_one, threads = study._run_one, []
    monkeypatch.setattr(study.host, "cores", lambda: 8)
    monkeypatch.setattr(study, "_run_one", lambda *args: threads.append(args[3]) or run_one(*args))
    study.run("s", two_variants, str(tmp_path), seeds=1, jobs=2)
    assert set(threads) == {4}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_the_page_holds_the_tables_of_the_studies_that_were_run(path):
    name, result = path.parent.name, read_json(str(path))
    page = (ROOT / "docs/reproduce.md").read_text()
    for line in study_report.text(result).splitlines():
        assert line in page
    chosen = study.load(name)
    assert {v["name"]: tuple(v["bindings"]) for v in result["variants"]} == chosen.variants
    assert all(len(study_report.chosen_runs(v)) >= 3 for v in result["variants"])


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_stored_runs_print_their_table_and_nothing_is_trained(path, tmp_path, monkeypatch, capsys):
    """Where a parameter is renamed, the digests in docs/studies change with it."""
    monkeypatch.setattr(study, "_run_one", lambda job, *others: pytest.fail(f"trains {job}"))
    shutil.copytree(path.parent, tmp_path / path.parent.name)
    stored, name = read_json(str(path)), path.parent.name
    seeds = min(len(study_report.chosen_runs(v)) for v in stored["variants"])
    result = study.run(name, study.load(name), str(tmp_path), seeds, jobs=1)
    assert study_report.text(result) == study_report.text(stored)
    assert "another configuration" not in capsys.readouterr().out


def test_runs_of_another_configuration_are_counted(two_variants, trained, tmp_path, capsys):
    study.run("s", two_variants, str(tmp_path), seeds=2, jobs=1)
    two_variants.variants["b"] = (*two_variants.variants["b"], "experiment.Experiment.steps = 7")
    trained.clear()
    study.run("s", two_variants, str(tmp_path), seeds=2, jobs=1)
    told = capsys.readouterr().out
    assert f"{tmp_path}/s/study.json: 3 runs have another configuration" in told
    assert study.STUDY + ".old" in told and (tmp_path / "s/study.json.old").exists()
    assert trained == [("b", 0.1, 0), ("b", 0.2, 0), ("b", 0.1, 1)]


def test_a_rate_that_is_no_longer_searched_is_not_chosen(
    two_variants, trained, tmp_path, monkeypatch, capsys
):
    study.run("s", two_variants, str(tmp_path), seeds=2, jobs=1)
    one_rate = dataclasses.replace(two_variants, learning_rates=(0.1,))
    monkeypatch.setitem(PQ, ("a", 0.1), (20.0, 21.0))
    result = study.run("s", one_rate, str(tmp_path), seeds=2, jobs=1)
    assert "3 runs have another configuration" in capsys.readouterr().out
    assert [row.learning_rate for row in study_report.rows(result)] == [0.1, 0.1]
    kept = read_json(str(tmp_path / "s/study.json.old"))["variants"][0]["runs"]
    assert [run["learning_rate"] for run in kept] == [0.1, 0.2, 0.2]


def test_variants_that_are_one_experiment_are_refused(two_variants, trained, tmp_path):
    """They would share a run folder: two trainings would write into it at once."""
    two_variants.variants["c"] = two_variants.variants["a"]
    with pytest.raises(InputError, match="^Study: 'a' at 0.1 and 'c' at 0.1 are the same experim"):
        study.run("s", two_variants, str(tmp_path), seeds=1, jobs=2)
    assert not trained


def test_runs_of_several_origins_are_told(two_variants, trained, tmp_path, monkeypatch):
    run_one = study._run_one
    origin = {"revision": "new", "tensorflow": "2.20.0", "encoder": "0123"}

    def run_with_origin(job, *others):
        known = {"origin": origin} if job.seed == 2 else {}  # the others are older
        return run_one(job, *others) | known

    monkeypatch.setattr(study, "_run_one", run_with_origin)
    alike = study.run("s", two_variants, str(tmp_path), seeds=2, jobs=1)
    assert "origin" not in study_report.text(alike)
    result = study.run("s", two_variants, str(tmp_path), seeds=3, jobs=1)
    line = (
        "Not all runs have one origin: 4 runs are of an older version of kmax_tf;"
        " 2 runs are of revision new, tensorflow 2.20.0, encoder 0123."
    )
    assert line in study_report.text(result)
    assert line in pathlib.Path(study_report.write(result, str(tmp_path))).read_text()


def test_encoders_are_told_apart_by_their_weights_not_by_their_files(tmp_path):
    def digest(name, *values):
        parts = {f"part{i}": tf.Variable(value) for i, value in enumerate(values)}
        return study._weights_digest(tf.train.Checkpoint(**parts).write(str(tmp_path / name)))

    assert digest("a", 1.0, 2.0) == digest("b", 1.0, 2.0) != digest("c", 2.0, 1.0)


def test_fewer_seeds_lose_no_stored_run(two_variants, trained, tmp_path):
    whole = study.run("s", two_variants, str(tmp_path), seeds=3, jobs=1)
    written = (tmp_path / "s/study.json").read_bytes()
    trained.clear()
    assert study.run("s", two_variants, str(tmp_path), seeds=1, jobs=1) == whole
    assert (tmp_path / "s/study.json").read_bytes() == written and not trained


def test_an_interruption_loses_no_stored_run(two_variants, trained, tmp_path, monkeypatch):
    study.run("s", two_variants, str(tmp_path), seeds=2, jobs=1)
    stored = study.finished(str(tmp_path)).keys()

    def write_and_stop(path, content):
        write_atomic(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "write_atomic", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        study.run("s", two_variants, str(tmp_path), seeds=3, jobs=1)
    assert study.finished(str(tmp_path)).keys() > stored


def test_mistakes_are_named_before_anything_runs(two_variants, trained, tmp_path):
    with pytest.raises(InputError, match="no gin file.*interaction"):
        study.load("interactoin")
    two_variants.variants["c"] = ("kmax_decoder.ClusterPath.depth = (1,)",)
    with pytest.raises(InputError, match="depths"):
        study.run("s", two_variants, str(tmp_path), seeds=1, jobs=1)
    assert not trained


def test_a_failed_run_is_one_line_that_names_its_log(two_variants, tiny, tmp_path):
    tiny()  # writes tiny.gin
    variants = {"a": ('experiment.Experiment.data_dir = "nowhere"',)}
    base = str(tmp_path / "tiny.gin")
    chosen = dataclasses.replace(two_variants, variants=variants, base=base, learning_rates=(0.1,))
    with pytest.raises(InputError, match=r"^a, learning rate 0.1, seed 0: .*nowhere.*log.txt$"):
        study.run("s", chosen, str(tmp_path), seeds=1, jobs=1)
    [log] = tmp_path.glob("runs/*/log.txt")
    assert "nowhere" in log.read_text()


@pytest.fixture
def command(tiny, tmp_path):
    """A function: folder -> the running command of a study with an encoder and one short run."""
    tiny()  # writes tiny.gin
    experiment = "experiment.Experiment"
    bindings = [f"{experiment}.steps = 40", f"{experiment}.checkpoint_interval = 20"]
    (tmp_path / "one.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom kmax_tf.studies import study\n"
        'study.Study.question = "?"\nstudy.Study.paper = ""\n'
        f'study.Study.variants = {{"a": {bindings}}}\n'
        f'study.Study.base = "{tmp_path}/tiny.gin"\nstudy.Study.encoder = "{tmp_path}/tiny.gin"\n'
        "study.Study.learning_rates = (0.01,)\n"
    )
    words = [sys.executable, str(ROOT / "scripts/study.py"), str(tmp_path / "one.gin"), "--seeds=1"]
    return lambda out: subprocess.Popen([*words, f"--out={out}"], cwd=ROOT)


def processes_of(folder):
    """The running processes whose command lines name a folder."""
    lines = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended in the meantime
            lines.append(path.read_bytes())
    return [line for line in lines if bytes(folder) in line]


@pytest.mark.long
@pytest.mark.slow
def test_killed_and_started_again_a_study_ends_with_the_same_numbers(command, tmp_path):
    assert command(tmp_path / "whole").wait() == 0
    killed = command(tmp_path / "killed")
    while not list((tmp_path / "killed/runs").glob("*/checkpoints/ckpt-20.index")):
        assert killed.poll() is None
        time.sleep(0.05)
    assert len(processes_of(tmp_path / "killed")) == 2  # the study and a script
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for _ in range(100):  # the kernel needs a moment
        time.sleep(0.1 * bool(processes_of(tmp_path / "killed")))
    assert not processes_of(tmp_path / "killed")
    assert not (tmp_path / "killed/one/study.json").exists()
    assert command(tmp_path / "killed").wait() == 0
    whole, again = (
        read_json(str(tmp_path / name / "one/study.json"))["variants"][0]["runs"][0]
        for name in ("whole", "killed")
    )
    assert whole["steps"] == [20, 40]
    assert {**whole, "minutes": 0} == {**again, "minutes": 0}
    for path in (tmp_path / "whole/runs").glob("*/eval/metrics-*.json"):
        same = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        first, second = (json.loads(p.read_text()) for p in (path, same))
        del first["checkpoint"], second["checkpoint"]  # of the files, which name their objects anew
        assert first == second and first["mIoU"] > 0
    (tmp_path / "killed/one/study.json").unlink()
    assert again["digest"] in study.finished(str(tmp_path / "killed"))
