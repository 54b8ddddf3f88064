"""Checkpoints damaged under the evaluator's eyes, and the evaluator killed, again and again."""

import json
import multiprocessing
import pathlib
import random
import re
import sys

import pytest

from kmax_tf import checkpoint, evaluate, inference

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chaos_processes  # noqa: E402

KILLS = 10


@pytest.fixture
def start():
    """Starts a function of chaos_processes as a process, with TensorFlow imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chaos_processes"])
    processes = []

    def start(function, *arguments):
        processes.append(context.Process(target=function, args=arguments))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


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
    evaluator.join(60)
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
    predict = inference.predictor(model, experiment)
    paths = {checkpoint.step_of(path): path for path in checkpoint.completed(str(run_dir))}
    for step in good:
        checkpoint.restore_model(model, paths[step])
        expected, _, _ = evaluate.evaluate(experiment, predict, step)
        del written[step]["pictures"]
        assert written[step] == expected
    assert len({metrics["mIoU"] for metrics in written.values()}) > 5  # they can be told apart
    assert json.loads((run_dir / "metrics.json").read_text())["step"] == chaos_processes.STEPS
