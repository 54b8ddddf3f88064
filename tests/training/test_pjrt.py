"""Training through PJRT: the same losses, bits and checkpoints as on TensorFlow's own devices."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf
import toy

from kmax_tf import config, runtime
from kmax_tf.errors import InputError
from kmax_tf.evaluation import evaluate
from kmax_tf.experiment import Experiment
from kmax_tf.run_folder import checkpoint, layout
from kmax_tf.training import memory, replica_program, train
from kmax_tf.training.replica_strategy import ReplicaStrategy
from kmax_tf.training.trainer import make_trainer

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def gin_file(tiny, tmp_path):
    tiny()
    return str(tmp_path / "tiny.gin")


@pytest.fixture
def start(gin_file):
    """Starts scripts/train.py; a process that is still there at the end is killed."""
    pytest.importorskip("jax")
    processes = []

    def start(run_dir, device, bindings, gin_file=gin_file, **environment):
        command = [sys.executable, str(ROOT / "scripts/train.py"), f"--gin_file={gin_file}"]
        command += [f"--run_dir={run_dir}", f"--device={device}"]
        command += [f"--gin={binding}" for binding in bindings]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(subprocess.Popen(command, env=os.environ | environment, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def run(start):
    """Runs scripts/train.py to its end, and returns what it prints."""

    def run(*arguments, **options):
        process = start(*arguments, **options)
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
        return text

    return run


def test_another_device_is_refused_in_one_line():
    pytest.importorskip("jax")
    for device in ("pjrt:gpu:2", "pjrt:cpu:0", "pjrt:"):
        with pytest.raises(InputError, match=f"'{device}' is none of pjrt, pjrt:cpu:N"):
            train.make_strategy(device)


def printed_by(code):
    """What a Python process prints that runs the code."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_jax_is_needed_only_when_asked_for():
    code = """
import sys
sys.modules["jax"] = None  # as if missing; TensorFlow imports it where it can
from kmax_tf.errors import InputError
from kmax_tf.training import train
train.make_strategy("cpu")
try:
    train.make_strategy("pjrt")
except InputError as error:
    print(error)
"""
    device, refusal = printed_by(code).splitlines()
    assert device == "device: 1 x CPU"
    assert re.fullmatch(r"device 'pjrt': .*jax.*; pip install 'kmax_tf\[pjrt\]'", refusal)


def test_a_process_may_train_again():
    """As a notebook does after a misspelled setting."""
    pytest.importorskip("jax")
    code = """
from kmax_tf.errors import InputError
from kmax_tf.training import train
print([train.make_strategy("pjrt:cpu:2").num_replicas_in_sync for _ in range(2)])
try:
    train.make_strategy("pjrt:cpu:3")
except InputError as error:
    print(error)
"""
    expected = r"\[2, 2\]\ndevice 'pjrt:cpu:3' cannot be used: .*\n"
    assert re.fullmatch(expected, printed_by(code))


@pytest.mark.parametrize("device", ["pjrt", "pjrt:cpu:2"])
def test_a_notebook_that_has_used_jax_is_told_to_start_again(device):
    pytest.importorskip("jax")
    code = f"""
import jax
jax.devices()
from kmax_tf.errors import InputError
from kmax_tf.training import train
try:
    train.make_strategy({device!r})
except InputError as error:
    print(error)
"""
    line = f"device '{device}' cannot be used: JAX is already in use in this process; restart it"
    assert printed_by(code).startswith(line)


@pytest.mark.parametrize(
    ("kinds", "task", "expected"),
    [
        ({"worker": ["b:1", "c:1"]}, ("worker", 1), ("b:1", 2, 1)),
        ({"worker": ["b:1"], "chief": ["a:1"]}, ("chief", 0), ("a:1", 2, 0)),
        ({"worker": ["b:1", "c:1"], "chief": ["a:1"]}, ("worker", 1), ("a:1", 3, 2)),
        ({"chief": ["a:1"]}, ("chief", 0), ("a:1", 1, 0)),
    ],
)
def test_the_chief_of_tf_config_is_the_first_host(kinds, task, expected, monkeypatch):
    """As for MultiWorkerMirroredStrategy."""
    jax = pytest.importorskip("jax")
    from kmax_tf.training import pjrt

    given = []
    hosts = {"cluster": kinds, "task": {"type": task[0], "index": task[1]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(hosts))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: given.append(args))
    pjrt._meet.__wrapped__()
    assert given == [expected]


@pytest.mark.parametrize("task", [("evaluator", 0), ("worker", 1)])
def test_a_host_that_does_not_train_is_refused(task, monkeypatch):
    jax = pytest.importorskip("jax")
    from kmax_tf.training import pjrt

    hosts = {"cluster": {"worker": ["b:1"]}, "task": {"type": task[0], "index": task[1]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(hosts))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(pjrt, "_meet", pjrt._meet.__wrapped__)
    with pytest.raises(InputError, match=re.escape(f"TF_CONFIG: task {task} is no chief and no")):
        pjrt.strategy("pjrt")


class OneDevice:
    """A stand-in for the trainer, as far as the kept program asks it."""

    def __init__(self, experiment, kept_at="", platform="cpu", process=0):
        client = types.SimpleNamespace(platform_version="1")
        device = types.SimpleNamespace(
            client=client, platform=platform, process_index=process, id=0
        )
        devices = types.SimpleNamespace(everywhere=[device])
        extended = types.SimpleNamespace(should_checkpoint=True)
        self.experiment, self.kept_at = experiment, kept_at
        self.strategy = types.SimpleNamespace(devices=devices, extended=extended)


def test_another_source_setting_or_flag_needs_another_program(tiny_text, tmp_path, monkeypatch):
    """Also the source of a user's own backbone, which only the gin file names."""
    pytest.importorskip("jax")
    from kmax_tf.training import pjrt_trainer

    monkeypatch.syspath_prepend(tmp_path)
    source, gin_file = tmp_path / "own_backbone.py", tmp_path / "own.gin"
    source.write_text("STRIDE = 1\n")
    first, *rest = tiny_text.format(records="").strip().splitlines()
    gin_file.write_text("\n".join([first, "import own_backbone", *rest]))

    def key(*bindings):
        dataset = types.SimpleNamespace(categories=())
        config.load(Experiment, str(gin_file), bindings)
        return pjrt_trainer._key(OneDevice(types.SimpleNamespace(dataset=dataset)))

    found = [key(), key("experiment.Experiment.batch_size = 4")]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    found.append(key())
    source.write_text("STRIDE = 2\n")
    found.append(key())
    assert len(set(found)) == 4 and key() == found[-1]


def test_another_cpu_or_place_of_the_devices_needs_another_program(tiny, tmp_path, monkeypatch):
    """A program for AVX-512 ends a process on a CPU without it, at each start."""
    pytest.importorskip("jax")
    from kmax_tf.training import pjrt_trainer

    experiment, cpus = tiny(), tmp_path / "cpuinfo"
    monkeypatch.setattr(pjrt_trainer, "CPUS", str(cpus))

    def key(text, platform="cpu", process=0):
        cpus.write_text(text)
        trainer = OneDevice(experiment, platform=platform, process=process)
        return pjrt_trainer._key(trainer)

    new = "processor\t: 0\ncpu MHz\t\t: {}\nflags\t\t: fpu avx512f\nbugs\t\t: none\n"
    old, arm = new.replace(" avx512f", ""), "processor\t: 0\nFeatures\t: fp asimd sve\n"
    assert key(new.format(2400)) == key(new.format(3100))
    assert len({key(new), key(old), key(arm), key(arm.replace(" sve", "")), key("")}) == 5
    assert key(new, "tpu") == key(old, "tpu") != key(old, "tpu", process=1)


def test_hosts_with_other_numbers_of_devices_are_refused(monkeypatch):
    jax = pytest.importorskip("jax")
    from kmax_tf.training import pjrt

    devices = [types.SimpleNamespace(process_index=p, id=i) for i, p in enumerate((0, 0, 1))]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(pjrt, "_meet", lambda: None)
    with pytest.raises(InputError, match=r"the hosts have \[1, 2\] devices; give each the same"):
        pjrt.strategy("pjrt")


def test_a_step_that_does_not_fit_is_one_line(monkeypatch):
    jax = pytest.importorskip("jax")
    from kmax_tf.training import pjrt

    def compile_and_load(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory\nand so on")

    backend = types.SimpleNamespace(compile_and_load=compile_and_load)
    monkeypatch.setattr(pjrt, "get_backend", lambda: backend)
    monkeypatch.setattr(pjrt, "_placement", lambda devices: ())
    line = r"^the step does not fit .*Ran out of memory\); use a smaller --batch_size[^\n]*$"
    with pytest.raises(InputError, match=line):
        pjrt.compile_module(None, None)


@pytest.mark.parametrize("when", ["send", "start", "end", "fetch"])
def test_a_lack_of_memory_while_steps_run_is_one_line(when):
    jax = pytest.importorskip("jax")
    from kmax_tf.training import pjrt_trainer

    def lacks(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\nand so on")

    def runs(*arguments):
        return arguments

    token = types.SimpleNamespace(block_until_ready=lacks if when == "end" else runs)
    trainer = types.SimpleNamespace(
        _next_batch=lacks if when == "send" else runs,
        _step=lacks if when == "start" else lambda *arguments: ([], token),
        _fetch=lacks if when == "fetch" else runs,
        _state=[],
        _light=[],
    )
    with pytest.raises(memory.DoesNotFit, match=r"Out of memory allocating\); use a smaller --ba"):
        pjrt_trainer.PjrtTrainer.train(trainer, 3)


def test_a_lack_of_memory_at_the_start_or_in_a_save_is_one_line(monkeypatch):
    jax = pytest.importorskip("jax")
    from kmax_tf.training import pjrt_trainer

    def lacks(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(pjrt_trainer, "_kept", lacks)
    with pytest.raises(memory.DoesNotFit):
        pjrt_trainer.PjrtTrainer.prepare(None)
    extended = types.SimpleNamespace(should_checkpoint=True)
    strategy = types.SimpleNamespace(extended=extended)
    trainer = types.SimpleNamespace(strategy=strategy, _fetch=lacks, _heavy=[])
    with pytest.raises(memory.DoesNotFit):
        pjrt_trainer.PjrtTrainer.save(trainer, "run")


def test_what_a_step_only_reads_stays_as_it_was():
    pytest.importorskip("jax")
    from kmax_tf.training import pjrt_trainer

    step = pjrt_trainer.Step(
        lambda arguments: (["new b", "new a"], "token"), [4, 5, 6], [1, None, 0]
    )
    assert step(["image"], ["a", "frozen", "b"]) == (["new a", "frozen", "new b"], "token")


def test_hosts_that_found_other_checkpoints_are_refused():
    """Also where they differ only in one of the two parts that are compared."""
    barrier, given = threading.Barrier(2), {}

    class Host(ReplicaStrategy):
        def sum_of_processes(self, value):
            given[self.extended.process] = value
            barrier.wait()
            total = sum(given.values())
            barrier.wait()
            return total

    def check(process, start):
        try:
            train._check_hosts_agree(Host(1, process, 2), start)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(2) as hosts:
        assert list(hosts.map(check, (0, 1), (4_100, 4_100))) == [None, None]
        for other in (4, 4_101, 1 << 40):
            refused = list(hosts.map(check, (0, 1), (4_100, other)))
            assert all(line.startswith("the hosts found different checkpoints") for line in refused)


def test_training_goes_on_where_the_program_cannot_be_kept(tmp_path, capsys, monkeypatch):
    pytest.importorskip("jax")
    from kmax_tf.training import pjrt_trainer

    monkeypatch.setattr(pjrt_trainer, "_key", lambda trainer: "key")
    (tmp_path / "file").write_text("no folder")
    executable = types.SimpleNamespace(serialize=lambda: b"program")
    step = pjrt_trainer.Step(executable, [], [])
    pjrt_trainer._keep(step, OneDevice(None, str(tmp_path / "file/program.pjrt")))
    assert "the compiled step is not kept: " in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"{}\nprogram", b"[]", b"\xff\n"])
def test_a_damaged_program_is_compiled_again(content, tmp_path, capsys, monkeypatch):
    pytest.importorskip("jax")
    from kmax_tf.training import pjrt_trainer

    monkeypatch.setattr(pjrt_trainer, "_key", lambda trainer: "key")
    path = tmp_path / "program.pjrt"
    path.write_bytes(content)
    assert pjrt_trainer._kept(types.SimpleNamespace(kept_at=str(path))) is None
    assert f"{path}: cannot be loaded" in capsys.readouterr().out


@pytest.mark.xla
@pytest.mark.long
@pytest.mark.slow
def test_one_device_trains_as_the_same_step_in_tensorflow(
    gin_file, tmp_path, run, same_on_all, losses, assert_same_losses
):
    run(tmp_path / "run", "pjrt:cpu:1", same_on_all)
    experiment = config.load(Experiment, gin_file, same_on_all)
    trainer = make_trainer(experiment, ReplicaStrategy(1))
    step, _ = replica_program.training_step(trainer)
    records, stride = train.training_records(experiment), trainer.model.output_stride
    batches = train.training_dataset(experiment, records, trainer.strategy, stride, 0)
    expected = {}
    for batch in batches.take(experiment.steps):
        step(*tf.nest.flatten(batch))
        for tag, value in trainer.train_loop_end().items():
            if tag.startswith(("loss", "decoder")):
                expected.setdefault(tag, []).append(value)
    assert_same_losses(losses(tmp_path / "run"), expected)


@pytest.mark.xla
@pytest.mark.slow
def test_devices_of_two_hosts_train_as_one_device(
    tmp_path, start, run, same_on_all, losses, assert_same_losses, free_ports, either_gin_file
):
    run(tmp_path / "one", "pjrt:cpu:1", same_on_all, either_gin_file)
    hosts = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    processes = []
    for index in range(2):
        task = json.dumps({"cluster": hosts, "task": {"type": "worker", "index": index}})
        place = dict(TF_CONFIG=task, TMPDIR=str(tmp_path))
        arguments = tmp_path / "hosts", "pjrt:cpu:2", same_on_all, either_gin_file
        processes.append(start(*arguments, **place))
    texts = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert "device: 4 x cpu" in texts[0]
    assert_same_losses(losses(tmp_path / "hosts"), losses(tmp_path / "one"))
    (path,) = checkpoint.completed(str(tmp_path / "hosts"))
    assert checkpoint.step_of(path) == 20
    assert not list(tmp_path.glob("tmp*"))  # what the other host wrote is gone


@pytest.mark.xla
@pytest.mark.slow
def test_killed_it_resumes_to_the_same_bits_without_compiling(
    tmp_path, start, run, assert_same_state
):
    """With all that a step may do: bfloat16, augmentation, accumulation, drop query, an EMA."""
    bindings = (
        "experiment.Experiment.steps = 8",
        "experiment.Experiment.batch_size = 4",
        "experiment.Experiment.accumulation = 2",
        "experiment.Experiment.ema_decay = 0.9",
        'experiment.Experiment.precision = "mixed_bfloat16"',
        'training_input.TrainingInput.placement = "device"',
        "training_input.TrainingInput.max_segments = 8",
        "kmax_decoder.ClusterPath.drop_query = True",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "compiled in" in run(whole, "pjrt:cpu:2", bindings)
    killed.mkdir()
    kept = pathlib.Path(layout.program(str(whole)))
    (killed / kept.name).write_bytes(kept.read_bytes())
    process = start(killed, "pjrt:cpu:2", bindings)
    while not checkpoint.completed(str(killed)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    text = run(killed, "pjrt:cpu:2", bindings)
    assert "resuming from" in text and "loaded the compiled training step" in text
    assert_same_state(*(checkpoint.newest(str(folder)) for folder in (killed, whole)))


@pytest.mark.xla
@pytest.mark.slow
def test_a_backbone_that_does_not_learn_keeps_its_bits(gin_file, tmp_path, run, monkeypatch):
    """It is an argument of the program that no output replaces."""
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(toy.__file__).parent))
    (tmp_path / "toy.gin").write_text(toy.GIN.replace("@toy.Toy\n", "@toy.Frozen\n"))
    run(tmp_path / "run", "pjrt:cpu:2", (), str(tmp_path / "toy.gin"))
    paths = checkpoint.completed(str(tmp_path / "run"))
    first, *_, last = (tf.train.load_checkpoint(path) for path in paths)

    def changes(part):
        names = [n for n in first.get_variable_to_shape_map() if n.startswith(f"model/{part}")]
        return [(first.get_tensor(n) != last.get_tensor(n)).any() for n in names]

    assert len(paths) == 4
    assert not any(changes("pixel_encoder/")) and len(changes("pixel_encoder/")) == 2
    assert all(changes("head/"))


@pytest.mark.xla
@pytest.mark.long
@pytest.mark.slow
def test_a_run_goes_from_one_kind_of_device_to_another(
    gin_file, tmp_path, run, two_replicas, same_on_all, losses, assert_same_losses, cut
):
    bindings = [*same_on_all, "experiment.Experiment.checkpoint_interval = 5"]
    experiment = config.load(Experiment, gin_file, bindings)
    train.train(experiment, str(tmp_path / "one"), runtime.strategy("cpu"))
    run_dir = tmp_path / "moving"
    train.train(experiment, str(run_dir), two_replicas)
    cut(run_dir, 5)
    run(run_dir, "pjrt:cpu:2", bindings)
    cut(run_dir, 15)
    tf.io.gfile.rmtree(layout.training(str(run_dir)))
    train.train(experiment, str(run_dir), runtime.strategy("cpu"))
    expected = {tag: values[15:] for tag, values in losses(tmp_path / "one").items()}
    # XLA and oneDNN round differently, so that a pixel may take another cluster.
    assert_same_losses(losses(run_dir), expected, tolerance=1e-3, steps=5)
    # So few steps find no segment, but the semantic map has classes.
    moved, whole = (
        evaluate.evaluate_run(experiment, str(folder), once=True)["mIoU"]
        for folder in (run_dir, tmp_path / "one")
    )
    print(f"mIoU {moved:.3f}, without a move {whole:.3f}")
    assert moved == pytest.approx(whole, abs=0.5) and whole > 5
