"""Training and evaluator killed again and again, and checkpoints corrupt under their eyes."""

import json
import math
import multiprocessing
import pathlib
import random
import re
import signal
import time

import chaos_processes
import pytest

from kmax_tf.evaluation import evaluate
from kmax_tf.inference import predictor
from kmax_tf.run_folder import checkpoint, layout

KILLS = 10  # of the evaluator
REAL_KILLS = 9  # of the training


@pytest.fixture
def start():
    """Starts a function of chaos_processes as a process, with TensorFlow imported already."""
    context = multiprocessing.get_context("forkserver")
    # Its server does not see the folder of chaos_processes.
    context.set_forkserver_preload(["kmax_tf.training.train", "kmax_tf.evaluation.evaluate"])
    processes = []

    def start(function, *arguments):
        processes.append(context.Process(target=function, args=arguments))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.mark.slow
def test_training_killed_at_any_moment_ends_as_if_undisturbed(
    tiny, tmp_path, start, assert_same_state
):
    """Lives end while it starts, some time after a step, and in the middle of a save, in turn."""
    tiny()
    seed = random.randrange(1000)
    print("seed", seed)
    drawn = random.Random(seed)
    folders = {run: pathlib.Path(layout.checkpoints(tmp_path / run)) for run in ("whole", "killed")}

    def life(run):
        return start(
            chaos_processes.train_for_real, str(tmp_path / "tiny.gin"), str(tmp_path / run)
        )

    def newest():
        return max(
            map(checkpoint.step_of, checkpoint.completed(str(tmp_path / "killed"))), default=0
        )

    def wait_until(happened, process, seconds=math.inf):
        deadline = time.monotonic() + seconds
        while not happened() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)

    start(int).join()  # the server that has TensorFlow imported
    begun = time.monotonic()
    process = life("whole")
    wait_until(lambda: checkpoint.completed(str(tmp_path / "whole")), process)
    start_up = time.monotonic() - begun
    process.join()
    assert process.exitcode == 0
    one_step = (time.monotonic() - begun - start_up) / chaos_processes.REAL_STEPS

    cut = 0  # saves
    for kill in range(REAL_KILLS):
        reached = newest()
        process = life("killed")
        longest = drawn.uniform(0, start_up) if kill % 3 == 0 else math.inf
        wait_until(lambda step=reached: newest() > step, process, longest)
        if kill % 3 == 1:
            process.join(drawn.uniform(0, 3 * one_step))
        if kill % 3 == 2:
            wait_until(lambda: any(folders["killed"].glob("writing-*")), process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it had not ended
        cut += any(folders["killed"].glob("writing-*"))
    assert cut > 0
    process = life("killed")
    process.join()
    assert process.exitcode == 0
    # Weights, moments and step of all that are kept.
    paths = [checkpoint.completed(str(tmp_path / run)) for run in ("killed", "whole")]
    steps = [[checkpoint.step_of(path) for path in run] for run in paths]
    assert steps[0] == steps[1] and steps[0][-1] == chaos_processes.REAL_STEPS
    for pair in zip(*paths, strict=True):
        assert_same_state(*pair)


@pytest.mark.long
@pytest.mark.slow
def test_every_good_checkpoint_is_evaluated_exactly_once(tiny, tmp_path, start):
    tiny()
    gin_file, run_dir, log = str(tmp_path / "tiny.gin"), tmp_path / "run", tmp_path / "log"
    seed = random.randrange(1000)
    print("seed", seed)
    drawn = random.Random(seed)
    trainer = start(chaos_processes.train, str(run_dir), seed)
    for _ in range(KILLS):
        evaluator = start(chaos_processes.follow, gin_file, str(run_dir), str(log))
        evaluator.join(drawn.uniform(1, 5))
        evaluator.kill()
        evaluator.join()
    trainer.join()
    evaluator = start(chaos_processes.follow, gin_file, str(run_dir), str(log))
    evaluator.join(600)
    assert evaluator.exitcode == 0

    written = {
        int(re.findall(r"\d+", path.name)[0]): json.loads(path.read_text())
        for path in (run_dir / "eval").glob("metrics-*.json")
    }
    steps = range(1, chaos_processes.STEPS + 1)
    repaired = {step for step in steps if step % chaos_processes.REPAIRED == 0}
    deleted = {step for step in steps if step % chaos_processes.DELETED == 0}
    truncated = {step for step in steps if step % chaos_processes.TRUNCATED == 0} - deleted
    good = set(steps) - (deleted | truncated) | repaired
    assert good <= set(written)
    printed = [int(s) for s in re.findall(r"^step (\d+):", log.read_text(), re.MULTILINE)]
    assert len(printed) == len(set(printed)) and set(printed) <= set(written)

    # What was written is what the checkpoint gives when nobody disturbs.
    experiment = chaos_processes.load(gin_file)
    model = experiment.build_evaluation_model()
    predict = predictor.build_predictor(model, experiment)
    paths = {checkpoint.step_of(path): path for path in checkpoint.completed(str(run_dir))}
    for step in good:
        checkpoint.restore_model(model, paths[step])
        expected, _, _ = evaluate.evaluate(experiment, predict, step)
        del written[step]["pictures"], written[step]["checkpoint"], written[step]["records"]
        assert written[step] == expected
    assert len({metrics["mIoU"] for metrics in written.values()}) > 5  # they can be told apart
    assert json.loads((run_dir / "metrics.json").read_text())["step"] == chaos_processes.STEPS
