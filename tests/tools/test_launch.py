"""scripts/launch_tpu.py from end to end, against a cloud of folders (fake_gcloud)."""

import contextlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
import types

import pytest

from kmax_tf.run_folder import watch
from kmax_tf.tools.launch import jobs
from kmax_tf.training import preemption

ROOT = pathlib.Path(__file__).parents[2]
GIN = "gin/experiments/small.gin"
RUN = [
    "--name=coco",
    "--zone=europe-west4-a",
    f"--gin_file={GIN}",
    "--data_dir=gs://bucket/records",
    "--run_dir=gs://bucket/runs/coco",
]
# The bucket is a file that counts the steps of which a checkpoint is kept.
TRAIN = """
import os, pathlib, sys, time
cloud = pathlib.Path(os.environ["FAKE"])
steps = cloud / "steps"
with (cloud / "trainings").open("a") as file:
    name, load = (os.environ.get(key) for key in ("TPU_NAME", "TPU_LOAD_LIBRARY"))
    file.write(f"{os.getcwd()} {name} {load} {sys.argv}\\n")
start = int(steps.read_text()) if steps.exists() else 0
print("starts at step", start, flush=True)
with (cloud / "starts").open("a") as file:
    file.write(f"{start}\\n")
for step in range(start + 1, 7):
    time.sleep(0.01)
    written = cloud / "steps.new"  # a preemption may come in the middle of a write
    written.write_text(str(step))
    written.replace(steps)
    print("step", step, end="\\r", flush=True)
    if step == 3 and (cloud / "train_error").exists():
        sys.exit("error: loss is not finite")
print("trained")
"""
EVALUATE = """
import os, pathlib, sys, time
cloud = pathlib.Path(os.environ["FAKE"])
if (cloud / "evaluate_error").exists():
    sys.exit("error: no records")
while not (cloud / "steps").exists() or (cloud / "steps").read_text() != "6":
    time.sleep(0.05)
print("PQ 53.0")
"""
SETUP = """#!/bin/bash
set -e
cd "$(dirname "$0")/.."
venv=.venv-$1
if [ "$1" = 2.20 ]; then venv=.venv; fi
mkdir -p "$venv/bin"
cat > "$venv/bin/python" <<'END'
#!/bin/bash
echo "$(basename "$(dirname "$HOME")")/$(basename "$HOME") $*" >> "$FAKE/python"
if [ "$1" != -m ]; then exec {python} -S -E "$@"; fi
END
chmod +x "$venv/bin/python"
echo "$(basename "$(dirname "$HOME")")/$(basename "$HOME") stock $1" >> "$FAKE/python"
"""

# `python3 -m venv uv` makes a folder with the programs pip and uv.
PYTHON3 = """#!/bin/bash
mkdir -p "$3/bin"
for program in pip uv; do
    echo '#!/bin/bash' > "$3/bin/$program"
    echo 'echo "slice/$(basename "$HOME") $(basename "$0") $*" >> "$FAKE/python"' \\
        >> "$3/bin/$program"
    chmod +x "$3/bin/$program"
done
"""


def write(path, text, executable=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if executable:
        path.chmod(0o755)


class Cloud:
    """A clone of the project, whose programs are stand-ins, and the cloud that it sees."""

    def __init__(self, folder, default_signals):
        self.default_signals = default_signals
        self.clone, self.path = folder / "clone", folder / "cloud"
        script = (ROOT / "scripts/launch_tpu.py").read_text()
        write(self.clone / "scripts/launch_tpu.py", script)
        write(
            self.clone / "scripts/setup_venv",
            SETUP.replace("{python}", sys.executable),
            executable=True,
        )
        write(self.clone / "scripts/train.py", TRAIN)
        write(self.clone / "scripts/evaluate.py", EVALUATE)
        write(self.clone / "scripts/doctor.py", "print('all fits')")
        write(self.clone / GIN, "")
        self.commit()
        (folder / "bin").mkdir()
        (folder / "bin/gcloud").symlink_to(ROOT / "tests/tools/fake_gcloud")
        write(self.path / "stand_ins/sudo", '#!/bin/bash\nexec "$@"\n', executable=True)
        for name in ("apt-get", "systemctl"):
            record = f'echo "$PWD {name} $* $(cat etc/systemd/system/*)" >> "$FAKE/root"'
            write(self.path / "stand_ins" / name, f"#!/bin/bash\n{record}\n", executable=True)
        write(self.path / "stand_ins/python3", PYTHON3, executable=True)
        self.plan()
        self.environment = os.environ | {
            "FAKE": str(self.path),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "KMAX_POLL_SECONDS": "0.01",
            "KMAX_SETTLED_SECONDS": "0",
        }

    def commit(self):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "m"]):
            subprocess.run(["git", *words], cwd=self.clone, check=True)

    def plan(self, **plan):
        lines = [f"{key}={shlex.quote(str(value))}\n" for key, value in plan.items()]
        write(self.path / "plan", "".join(lines))

    def start(self, *words):
        return subprocess.Popen(
            [sys.executable, self.clone / "scripts/launch_tpu.py", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=self.default_signals,  # it does not catch what is ignored
        )

    def launch(self, *words):
        process = self.start(*words)
        output = process.communicate(timeout=600)[0]
        return process.returncode, output

    def calls(self):
        path = self.path / "calls"
        calls = path.read_text().split("\x1e")[:-1] if path.exists() else []
        return [call.split("\x1f")[:-1] for call in calls]

    def read(self, name):
        path = self.path / name
        return path.read_text().splitlines() if path.exists() else []

    def machines(self):
        """What costs money: a request costs as soon as it is granted."""
        found = {"slice": "request", "evaluator": "evaluator"}
        return {name for name, path in found.items() if (self.path / path).exists()}


@pytest.fixture
def cloud(tmp_path, default_signals):
    cloud = Cloud(tmp_path, default_signals)
    yield cloud
    for path in cloud.path.glob("**/*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(path.read_text()), signal.SIGKILL)


def wait_for(path):
    deadline = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def change_training(cloud, old, new):
    """Commits the stand-in for training with `new` in place of `old`."""
    write(cloud.clone / "scripts/train.py", TRAIN.replace(old, new))
    cloud.commit()


def leave_training(cloud, kind):
    """Starts a run, and ends the launcher once its training runs."""
    cloud.plan(hangs="instances describe")
    process = cloud.start("run", *RUN)
    wait_for(cloud.path / "hanging")
    cloud.plan()
    os.killpg(process.pid, kind)
    process.communicate(timeout=600)


def deletions(output):
    """The commands that the output gives for deleting what still runs."""
    return [
        line.strip() for line in output.splitlines() if re.match(r" {4}gcloud .* delete ", line)
    ]


def assert_nothing_hidden(cloud, output):
    """Each machine that runs is named with a command, and that command deletes it."""
    cloud.plan()
    named = deletions(output)
    assert len(named) >= len(cloud.machines())
    for command in named:
        subprocess.run(command, shell=True, env=cloud.environment, stderr=subprocess.DEVNULL)
    assert not cloud.machines()


def test_a_run_from_creation_to_deletion(cloud):
    status, output = cloud.launch("run", *RUN, "--spot", '--gin=a.B.c = "it\'s"')
    assert status == 0, output
    assert not cloud.machines()
    assert not deletions(output)
    created = next(c for c in cloud.calls() if c[1:4] == ["tpus", "queued-resources", "create"])
    assert {"--accelerator-type=v3-32", "--spot", "--zone=europe-west4-a"} < set(created)
    assert "--runtime-version=tpu-vm-tf-2.18.0-pod-se" in created
    # Training ran once, on worker 0 alone, with every word as it was given.
    (training,) = cloud.read("trainings")
    words = [
        "scripts/train.py",
        f"--gin_file={GIN}",
        '--gin=experiment.Experiment.data_dir = "gs://bucket/records"',
        '--gin=a.B.c = "it\'s"',
        "--run_dir=gs://bucket/runs/coco",
        "--device=tpu:coco",
    ]
    assert training == f"{cloud.path}/slice/0/kmax_tf coco 0 {words}"
    # Its log and the evaluator's were shown, each line once.
    lines = output.splitlines()
    assert [line for line in lines if line.startswith("train: ")] == [
        "train: starts at step 0",
        *(f"train: step {step}" for step in range(1, 7)),
        "train: trained",
    ]
    assert lines.count("evaluate: PQ 53.0") == 1


@pytest.mark.parametrize("version, libtpu", [("2.18.0", "2.18.0"), ("2.19.1", "0.0.10")])
def test_one_tensorflow_everywhere_and_the_tpu_wheel_last(cloud, version, libtpu):
    status, output = cloud.launch("run", *RUN, f"--tensorflow={version}")
    assert status == 0, output
    minor = version.rsplit(".", 1)[0]
    done = {"slice/0": [], "cloud/evaluator": []}
    for line in cloud.read("python"):
        machine, _, words = line.partition(" ")
        done[machine].append(words)
    stock, libtpu_wheel, tpu_wheel, doctor, train = done["slice/0"]
    assert stock == f"stock {minor}"
    assert f"libtpu=={libtpu}" in libtpu_wheel
    assert f"--force-reinstall --no-deps tensorflow-tpu=={version}" in tpu_wheel
    assert doctor.startswith("scripts/doctor.py") and "--device=tpu:coco" in doctor
    assert train.startswith("scripts/train.py")
    stock, evaluate = done["cloud/evaluator"]
    assert stock == f"stock {minor}"
    # A slice may wait longer in the queue than a day.
    run_dir = "gs://bucket/runs/coco"
    assert evaluate == f"scripts/evaluate.py --run_dir={run_dir} --order=newest --wait=inf"
    # All workers serve with the same, and were restarted with it.
    restarted = [line for line in cloud.read("root") if "systemctl restart tpu-runtime" in line]
    assert [line.split()[0] for line in restarted] == [f"{cloud.path}/slice/{i}" for i in range(4)]
    for line in restarted:
        assert line.endswith(f'"TF_DOCKER_URL=registry/images/grpc_tpu_worker:tf-{version}-se"')


def test_with_pjrt_every_worker_runs_the_training(cloud):
    # As a step waits for all workers, so do these.
    together = 'while len((cloud / "trainings").read_text().splitlines()) < 4: time.sleep(0.05)'
    change_training(cloud, 'print("trained', f'{together}\nprint("trained')
    status, output = cloud.launch("run", *RUN, "--accelerator=v5e-16")
    assert status == 0, output
    assert not cloud.machines()
    created = next(c for c in cloud.calls() if c[1:4] == ["tpus", "queued-resources", "create"])
    assert "--accelerator-type=v5litepod-16" in created
    assert "--runtime-version=v2-alpha-tpuv5-lite" in created
    trainings = [line.split()[0] for line in cloud.read("trainings")]
    assert sorted(trainings) == [f"{cloud.path}/slice/{i}/kmax_tf" for i in range(4)]
    assert all("'--device=pjrt'" in line for line in cloud.read("trainings"))
    # Each worker has a Python that JAX takes, then the project, then JAX; the doctor looks at one.
    for worker in range(4):
        done = [line.partition(" ")[2] for line in cloud.read("python") if f"e/{worker} " in line]
        doctor = [line for line in done if "scripts/doctor.py" in line]
        uv, venv, stock, jax, *_, train = done
        assert uv.startswith("pip") and stock == "stock 2.20"
        assert venv.startswith("uv venv") and venv.endswith("--python=3.12 kmax_tf/.venv")
        assert jax.endswith("--editable .[pjrt] jax[tpu]")
        assert len(doctor) == (worker == 0) and train.startswith("scripts/train.py")
    assert not [line for line in cloud.read("root") if "systemctl" in line]
    assert "train: trained" in output and "evaluate: PQ 53.0" in output


def test_with_pjrt_a_restart_ends_what_hangs_on_other_workers(cloud):
    stops = """
again, hung = pathlib.Path("again"), cloud / "hung"
if not again.exists():
    again.touch()
    if "slice/0" in os.getcwd():
        while not hung.exists() or len(hung.read_text().split()) < 3:
            time.sleep(0.05)
        sys.exit(75)
    with hung.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)
"""
    change_training(cloud, "for step", f"{stops}for step")
    status, output = cloud.launch("run", *RUN, "--accelerator=v6e-16")
    assert status == 0, output
    hung = cloud.read("hung")
    assert len(hung) == 3  # all workers but the first
    for pid in hung:
        place = pathlib.Path(f"/proc/{pid}/cmdline")
        assert not place.exists() or not place.read_text()  # gone, or not yet buried


def test_goes_on_after_a_preemption(cloud):
    cloud.plan(preempted_at_step=3)
    status, output = cloud.launch("run", *RUN, "--spot")
    assert status == 0, output
    assert not cloud.machines()
    calls = [" ".join(words) for words in cloud.calls()]
    assert sum("queued-resources create" in call for call in calls) == 2
    assert sum("instances create" in call for call in calls) == 1
    first, second = cloud.read("starts")
    assert first == "0" and int(second) >= 3
    assert "slice coco was preempted" in output


def test_starts_again_what_stopped_without_an_error_of_its_own(cloud):
    """As a training does that got SIGTERM: it saves, and ends with a status that is not 0."""
    stopping = TRAIN.replace(
        "if step == 3 and", "if step == 3 and start == 0: sys.exit(75)\n    if"
    )
    stopping = stopping.replace("if (cloud", "if step == 3 and (cloud")
    write(cloud.clone / "scripts/train.py", stopping)
    cloud.commit()
    status, output = cloud.launch("run", *RUN)
    assert status == 0, output
    assert re.findall(r"train: starts at step (\d)", output) == ["0", "3"]
    creations = [c for c in cloud.calls() if c[2:4] == ["queued-resources", "create"]]
    assert len(creations) == 1
    assert sum("stock" in line for line in cloud.read("python")) == 2  # installed once a machine


# The evaluator stops at each of its first starts.
STOPS = """
done = cloud / "evaluated"
with (cloud / "evaluations").open("a") as file:
    print("start", file=file)
number = len((cloud / "evaluations").read_text().splitlines())
if number < 3:
    {evaluates}
    os._exit(137)
"""


def stop_evaluators(cloud, evaluates):
    """Training waits for the third evaluator, or until there is none."""
    stops = STOPS.format(evaluates=evaluates)
    write(cloud.clone / "scripts/evaluate.py", EVALUATE.replace("if (cloud", f"{stops}if (cloud"))
    waits = """
while not (cloud / "evaluations").exists():
    time.sleep(0.05)
while len((cloud / "evaluations").read_text().split()) < 3 and (cloud / "evaluator").exists():
    time.sleep(0.05)
"""
    change_training(cloud, 'print("trained', f'{waits}print("trained')


def test_an_evaluator_that_stopped_is_started_again_while_training_runs(cloud):
    """As after restarts of its VM."""
    stop_evaluators(cloud, "done.write_text(str(number))")
    status, output = cloud.launch("run", *RUN)
    assert status == 0, output
    assert len(cloud.read("evaluations")) == 3
    assert "evaluate: PQ 53.0" in output and not cloud.machines()


def test_an_evaluator_that_stops_twice_in_vain_is_not_started_for_ever(cloud):
    stop_evaluators(cloud, "pass")
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert len(cloud.read("evaluations")) == 2
    assert "gs://bucket/runs/coco: the evaluator stopped twice without evaluating" in output
    assert output.count("training continues without it") == 1
    assert "train: trained" in output and not cloud.machines()


def test_what_keeps_stopping_is_not_started_for_ever(cloud):
    cloud.environment["KMAX_SETTLED_SECONDS"] = "60"
    write(cloud.clone / "scripts/train.py", "raise ValueError('a bug')")
    cloud.commit()
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert "train: ValueError: a bug" in output
    assert "error: training ended" in output
    assert not cloud.machines()


@pytest.mark.parametrize("fails", ["", "storage ls .*index"])
def test_what_saves_before_it_stops_is_started_again(cloud, fails):
    """Where the checkpoints cannot be listed, too."""
    cloud.plan(fails=fails)
    stops = "if step == start + 2 and step < 6: sys.exit(75)"
    change_training(cloud, "if step == 3", f"{stops}\n    if step == 3")
    status, output = cloud.launch("run", *RUN)
    assert status == 0, output
    assert cloud.read("starts") == ["0", "2", "4"]


def test_what_stops_at_the_same_step_is_not_started_for_ever(cloud):
    dies = 'if step == 3: raise ValueError("a bug")'
    change_training(cloud, "    written =", f"    {dies}\n    written =")
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert cloud.read("starts") == ["0", "2"]
    assert "train: ValueError: a bug" in output
    assert "error: gs://bucket/runs/coco: training stopped twice" in output
    assert not cloud.machines()


# Where the storage does not answer, `kmax train` ends so: tests/commands/test_train.py.
AWAY = f"""
if {{condition}}:
    print("error: gs://bucket/runs/coco: cannot be listed now; try again", file=sys.stderr)
    sys.exit({preemption.RESTART})
"""


def lose_storage(cloud, condition):
    away = AWAY.format(condition=condition)
    change_training(cloud, "for step", f"{away}for step")


def test_a_training_whose_storage_did_not_answer_is_started_again(cloud):
    """However soon after its start."""
    cloud.environment["KMAX_SETTLED_SECONDS"] = "600"
    lose_storage(cloud, 'len((cloud / "starts").read_text().split()) == 1')
    status, output = cloud.launch("run", *RUN)
    assert status == 0, output
    assert cloud.read("starts") == ["0", "0"]
    assert "train: error: gs://bucket/runs/coco: cannot be listed now" in output
    assert "train: trained" in output and not cloud.machines()


@pytest.mark.parametrize(
    "fails, starts, message",
    [
        ("", 2, "gs://bucket/runs/coco: training stopped twice without saving"),
        ("storage ls .*index", 3, "gs://bucket/runs/coco/checkpoints/*.index: cannot be listed"),
    ],
)
def test_a_storage_that_stays_away_ends_the_run(cloud, fails, starts, message):
    """Where the launcher cannot list the checkpoints, too."""
    cloud.plan(fails=fails)
    lose_storage(cloud, 'len((cloud / "starts").read_text().split()) < 5')
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert cloud.read("starts") == ["0"] * starts
    error = output[output.index("\nerror: ") :]
    assert message in error and error.count("; ") == 1
    assert not cloud.machines()


def test_a_training_that_says_nothing_is_not_followed_for_ever(cloud):
    hangs = 'if step == 3: (cloud / "hung").touch(); time.sleep(60)'
    change_training(cloud, "    written =", f"    {hangs}\n    written =")
    leave_training(cloud, signal.SIGINT)
    wait_for(cloud.path / "hung")
    cloud.environment["KMAX_SILENCE_SECONDS"] = "0.1"
    status, output = cloud.launch("run", *RUN, "--evaluator=none")
    assert status == 1
    assert "error: training has said nothing for hours (last line: step 2); the run f" in output
    assert not cloud.machines()


def test_each_new_line_of_a_job_is_heard(monkeypatch):
    looks = [(1, "step 1", 1), (2, "", 1), (3, "step 1", 3)]  # time, new log, when it was heard
    now, said = 0, ""
    gcloud = types.SimpleNamespace(
        ask=lambda *_, dry: subprocess.CompletedProcess([], 0, f"running\n{said}\n", "")
    )
    machine = types.SimpleNamespace(gcloud=gcloud, ssh=lambda *_: [])
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    job = jobs.Job("train", machine, "gs://bucket/runs/coco")
    for now, said, heard in looks:  # noqa: B007
        assert job.follow() == "running" and job.heard == heard


def test_after_a_crash_that_nobody_saw_the_present_code_is_started(cloud):
    waits = 'if not (cloud / "killed").exists(): time.sleep(600)'
    change_training(cloud, "for step", f"{waits}\nfor step")
    leave_training(cloud, signal.SIGKILL)
    os.killpg(int((cloud.path / "slice/0/train.pid").read_text()), signal.SIGKILL)
    (cloud.path / "killed").touch()
    change_training(cloud, "trained", "trained by the mended code")
    status, output = cloud.launch("run", *RUN, "--evaluator=none")
    assert status == 0, output
    assert "train: trained by the mended code" in output


# It ends with an error of its own, crashes, or loses its files after its start.
LOOKED_AT = """calls = pathlib.Path(os.environ["FAKE"], "calls")
while "evaluate.seen" not in calls.read_text():
    time.sleep(0.05)
"""
DEATHS = [
    'sys.exit("error: no records")',
    "os._exit(137)",
    f"{LOOKED_AT}pathlib.Path('../evaluate.pid').unlink(); os._exit(137)",
]


@pytest.mark.parametrize("death", DEATHS)
def test_training_goes_on_without_an_evaluator_that_ended(cloud, death):
    """And without its VM."""
    cloud.environment["KMAX_SETTLED_SECONDS"] = "600"
    write(cloud.clone / "scripts/evaluate.py", f"import os, pathlib, sys, time\n{death}")
    waits = """
for is_there in (True, False):
    while (cloud / "evaluator").exists() != is_there:
        time.sleep(0.05)
"""
    change_training(cloud, 'print("trained', f'{waits}print("trained')
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert output.count("training continues without it") == 1
    assert "train: trained" in output and not cloud.machines()


def test_an_evaluator_that_only_waits_is_not_waited_for_for_ever(cloud):
    cloud.environment["KMAX_HOUR_SECONDS"] = "0"
    waits = "import time\nprint('waiting for ckpt-6, which cannot be read now', flush=True)"
    write(cloud.clone / "scripts/evaluate.py", f"{waits}\ntime.sleep(600)")
    cloud.commit()
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert "the evaluator's log ends with: waiting for ckpt-6, which cannot be read" in output
    assert "error: gs://bucket/runs/coco: the evaluator has waited for hours" in output
    assert "scripts/evaluate.py --run_dir=gs://bucket/runs/coco" in output
    assert not cloud.machines()


def test_an_evaluator_that_works_without_a_word_is_waited_for(cloud, capfd):
    cloud.environment["KMAX_HOUR_SECONDS"] = "0"
    probes = iter([None, "ckpt-6"])
    watch.poll(lambda: next(probes), 600, "the next checkpoint")
    said = capfd.readouterr().err
    assert said.startswith("waiting for the next checkpoint\n")
    works = f"""
print({said!r}, flush=True)
def looks():
    return (cloud / "calls").read_text().count("evaluate.seen 2")
while not (cloud / "was_deleted").exists():
    time.sleep(0.05)
seen = looks()
while looks() < seen + 8:
    time.sleep(0.05)
"""
    write(cloud.clone / "scripts/evaluate.py", EVALUATE.replace("print", f"{works}print"))
    cloud.commit()
    status, output = cloud.launch("run", *RUN)
    assert status == 0, output
    assert "evaluate: PQ 53.0" in output


@pytest.mark.parametrize("step", ["doctor.py", "tpu-vm ssh .*setsid nohup", "compute scp"])
def test_a_connection_that_is_lost_is_made_again(cloud, step):
    cloud.plan(drops=step)
    status, output = cloud.launch("run", *RUN)
    assert status == 0, output
    assert (cloud.path / "was_dropped").exists() and len(cloud.read("trainings")) == 1


def test_a_doctor_that_fails_is_asked_again(cloud):
    """Its storage may not answer for a moment."""
    asked = 'asked = pathlib.Path(os.environ["FAKE"], "asked")'
    fails = f"import os, pathlib, sys\n{asked}\nfirst = not asked.exists()\nasked.touch()"
    write(cloud.clone / "scripts/doctor.py", f"{fails}\nsys.exit(first)")
    cloud.commit()
    status, output = cloud.launch("run", *RUN, "--evaluator=none")
    assert status == 0, output


LOGIN = "There was a problem refreshing your tokens. Please run:\n\n  $ gcloud auth login\n"


@pytest.mark.parametrize(
    "step, says, message",
    [
        ("storage ls", "One or more URLs matched no objects.", "records: no such records"),
        ("storage ls", LOGIN, "records: cannot be listed: ERROR: (gcloud) There was a problem"),
        ("buckets describe", LOGIN, "bucket: cannot be used: ERROR: (gcloud) There was a problem"),
    ],
)
def test_why_the_bucket_cannot_be_used_is_told(cloud, step, says, message):
    cloud.plan(fails=step, says=says)
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    error = output.splitlines()[-1]
    assert error.startswith("error: gs://bucket") and message in error
    assert ("Please run: $ gcloud auth login" in error) == (says == LOGIN)


STEPS = {
    "records": "storage ls",
    "bucket": "buckets describe",
    "request": "queued-resources create",
    "queue": "queued-resources describe",
    "node": "tpu-vm describe",
    "last worker's version": "tpu-vm ssh .*--worker=3",
    "code": "tpu-vm scp",
    "packages": "tpu-vm ssh .*setup_venv",
    "TPU wheel": "tpu-vm ssh .*tensorflow-tpu",
    "doctor": "tpu-vm ssh .*doctor.py",
    "start": "tpu-vm ssh .*setsid nohup",
    "looking at training": "tpu-vm ssh .*train.seen",
    "evaluator": "instances create",
    "evaluator's code": "compute scp",
    "evaluator's packages": "compute ssh .*setup_venv",
    "evaluator's start": "compute ssh .*setsid nohup",
    "looking at evaluation": "compute ssh .*evaluate.seen",
    "deleting the slice": "queued-resources delete",
    "deleting the evaluator": "instances delete",
}


@pytest.mark.parametrize(
    "late", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "after its effect"]
)
@pytest.mark.parametrize("step", STEPS)
def test_a_failing_step_leaves_no_machine_unmentioned(cloud, step, late):
    cloud.plan(fails=STEPS[step], fails_late=late or "")
    status, output = cloud.launch("run", *RUN)
    if not (late and step.startswith("deleting")):
        assert status != 0, output
    assert_nothing_hidden(cloud, output)


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_a_job_that_ends_with_an_error_costs_nothing_more(cloud, job):
    (cloud.path / f"{job}_error").touch()
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    error = {"train": "error: loss is not finite", "evaluate": "error: no records"}[job]
    assert f"{job}: {error}" in output
    assert not cloud.machines()


def test_a_refused_request_is_deleted_and_explained(cloud):
    cloud.plan(request_ends_as="FAILED")
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert "quota" in output and "gcloud compute tpus versions list" in output
    assert not cloud.machines()


INTERRUPTIONS = {
    "in the queue": ("queued-resources describe", False),
    "installing": ("tpu-vm ssh .*setup_venv", False),
    "training": ("tpu-vm ssh .*train.seen", True),
    "evaluating": ("compute ssh .*evaluate.seen", True),
    "deleting": ("queued-resources delete", False),
}


@pytest.mark.parametrize(
    "kind",
    [
        signal.SIGINT,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGHUP, signal.SIGTERM)),
    ],
)
@pytest.mark.parametrize("moment", INTERRUPTIONS)
def test_an_interruption_deletes_or_names_what_runs(cloud, moment, kind):
    pattern, keeps = INTERRUPTIONS[moment]
    if keeps:  # the first look at a job comes before it is started
        cloud.plan(hangs=pattern if moment != "training" else "instances describe")
    else:
        cloud.plan(hangs=pattern)
    process = cloud.start("run", *RUN)
    wait_for(cloud.path / "hanging")
    cloud.plan()
    os.killpg(process.pid, kind)
    output = process.communicate(timeout=600)[0]
    assert process.returncode != 0
    if keeps:
        assert "continues without this program" in output
        # The evaluator is looked at while the slice is there, and after.
        assert ("rerun the command to follow it" in output) == ("slice" in cloud.machines())
        assert cloud.machines()
    else:
        assert not cloud.machines(), output
    assert_nothing_hidden(cloud, output)


@pytest.mark.parametrize(
    "state, kept", [("WAITING_FOR_RESOURCES", set()), ("REPAIRING", {"slice"})]
)
def test_an_interruption_deletes_an_earlier_request_that_waits(cloud, state, kept):
    """But only names a slice that may be training."""
    (cloud.path / "request").write_text(state)
    cloud.plan(request_ends_as=state)
    process = cloud.start("run", *RUN)
    while sum("describe" in call for call in cloud.calls()) < 3:  # one of them is of the bucket
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=600)[0]
    assert process.returncode != 0
    assert cloud.machines() == kept, output
    assert_nothing_hidden(cloud, output)


def test_an_interruption_names_what_was_not_yet_looked_at(cloud):
    (cloud.path / "request").write_text("ACTIVE")
    (cloud.path / "evaluator").mkdir()
    cloud.plan(hangs="queued-resources describe")
    process = cloud.start("run", *RUN)
    wait_for(cloud.path / "hanging")
    cloud.plan()
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=600)[0]
    assert cloud.machines() == {"slice", "evaluator"}
    assert_nothing_hidden(cloud, output)


def test_an_evaluator_of_an_earlier_command_is_named(cloud):
    (cloud.path / "evaluator").mkdir()
    status, output = cloud.launch("run", *RUN, "--evaluator=none")
    assert status == 1, output
    assert "train: trained" in output and cloud.machines() == {"evaluator"}
    assert_nothing_hidden(cloud, output)


def test_the_evaluator_alone_is_left_to_itself(cloud):
    """The same command would rent a slice again."""
    waits = 'while not (cloud / "go").exists(): time.sleep(0.05)'
    write(cloud.clone / "scripts/evaluate.py", EVALUATE.replace("print", f"{waits}\nprint"))
    cloud.commit()
    process = cloud.start("run", *RUN)
    wait_for(cloud.path / "was_deleted")
    while "evaluate.seen" not in " ".join(cloud.calls()[-1]):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=600)[0]
    assert cloud.machines() == {"evaluator"}
    assert "training is done, and the evaluator continues without this program" in output
    assert "rerun the command" not in output
    assert_nothing_hidden(cloud, output)


@pytest.mark.parametrize("evaluator, ends_with", [("none", 0), ("n2-standard-8", 1)])
def test_the_same_command_follows_a_training_that_was_left(cloud, evaluator, ends_with):
    """Where it cannot start an evaluator, too."""
    leave_training(cloud, signal.SIGINT)
    write(cloud.clone / "notes.txt", "what is not committed does not matter for following")
    status, output = cloud.launch("run", *RUN, f"--evaluator={evaluator}")
    assert status == ends_with, output
    assert len(cloud.read("trainings")) == 1
    assert "train: trained" in output and not cloud.machines()
    assert ("the files above are not committed" in output) == ends_with


def test_a_training_of_another_run_is_neither_followed_nor_deleted(cloud):
    slow = TRAIN.replace("time.sleep(0.01)", 'time.sleep(0.01 if "new" in str(sys.argv) else 600)')
    write(cloud.clone / "scripts/train.py", slow)
    cloud.commit()
    leave_training(cloud, signal.SIGINT)
    other = [*RUN, "--run_dir=gs://bucket/runs/new", "--evaluator=none"]
    status, output = cloud.launch("run", *other)
    assert status != 0, output
    assert "coco: runs the job train of gs://bucket/runs/coco; choose another" in output
    assert "slice" in cloud.machines() and len(cloud.read("trainings")) == 1
    # Once it has ended, the slice takes the other one.
    os.killpg(int((cloud.path / "slice/0/train.pid").read_text()), signal.SIGKILL)
    status, output = cloud.launch("run", *other)
    assert status == 0, output
    assert "--run_dir=gs://bucket/runs/new" in cloud.read("trainings")[1]
    assert "train: trained" in output and not cloud.machines()


def test_a_training_that_was_left_stays_where_its_worker_does_not_answer(cloud):
    """It is neither installed over, nor deleted, for ssh may fail for a while."""
    leave_training(cloud, signal.SIGINT)
    before = len(cloud.calls())
    cloud.plan(fails="tpu-vm ssh")
    status, output = cloud.launch("run", *RUN, "--evaluator=none")
    assert status != 0 and "worker 0 does not answer" in output
    assert "slice" in cloud.machines() and len(cloud.read("trainings")) == 1
    words = [word for call in cloud.calls()[before:] for word in call]
    assert not {"delete", "scp"} & set(words)
    assert_nothing_hidden(cloud, output)


def test_a_request_whose_node_is_gone_is_made_again(cloud):
    (cloud.path / "request").write_text("ACTIVE")
    status, output = cloud.launch("run", *RUN, "--evaluator=none")
    assert status == 0, output
    assert "slice coco was preempted" in output and "train: trained" in output
    assert not cloud.machines()


def test_a_log_may_hold_any_bytes(cloud):
    strange = """sys.stdout.buffer.write(b"caf\\xc3\\n")\nprint("trained")"""
    change_training(cloud, 'print("trained")', strange)
    status, output = cloud.launch("run", *RUN)
    assert status == 0, output
    assert "train: trained" in output


def test_who_closes_the_output_still_gets_the_machines_deleted(cloud):
    process = cloud.start("run", *RUN)
    process.stdout.close()
    process.wait(timeout=600)
    assert any("create" in call for call in cloud.calls())
    assert not cloud.machines()


def test_delete_deletes_all(cloud):
    (cloud.path / "request").write_text("ACTIVE")
    (cloud.path / "evaluator").mkdir()
    status, output = cloud.launch("delete", "--name=coco", "--zone=europe-west4-a")
    assert status == 0, output
    assert not cloud.machines() and "no slice" not in output
    status, output = cloud.launch("delete", "--name=coco", "--zone=europe-west4-b")
    assert status == 0
    assert "no slice coco in europe-west4-b" in output
    assert "no evaluator coco-eval in europe-west4-b" in output


def commands(output):
    """The gcloud commands that a dry run printed, as lists of words."""
    text = re.sub(r"^(?!gcloud )(\[\d|Rents|git bundle|    v3|    n2).*$", "\0", output, flags=re.M)
    found = re.split(r"\0|^(?=gcloud )", text, flags=re.M)
    return [shlex.split(part) for part in found if part.startswith("gcloud ")]


def test_a_dry_run_prints_what_a_run_does_and_does_nothing(cloud):
    status, output = cloud.launch("run", *RUN, "--spot", "--dry-run")
    assert status == 0, output
    assert not cloud.calls()

    def known(words):
        line = re.sub(r"/\S*/kmax_tf.bundle", "BUNDLE", " ".join(words))
        return line.replace("--project=my-project", "--project=PROJECT")

    printed = {known(words[1:]) for words in commands(output)}
    cloud.launch("run", *RUN, "--spot")
    ran = {known(words) for words in cloud.calls() if words[0] != "config"}
    assert printed == ran


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--data_dir=data/records", "gs://"),
        ("--run_dir=/mnt/runs", "gs://"),
        ('--gin=x.Experiment.initial_checkpoint = "ckpt/r50"', "checkpoint"),
        ("--gin=datasets.load.source = 'data/own'", "load.source = '\"'\"'gs://bucket/records"),
        ("--gin_file=gin/experiments/none.gin", "committed"),
        ("--accelerator=v3-8", "one host"),
        ("--tensorflow=2.17.0", "2.18.0"),
        ("--steps=5", "--steps=5"),
        ("--accelerator=v9-16", "v5e-16"),
        ("--name=Co co", "--name"),
        ("--zone=europe", "--zone"),
    ],
)
def test_a_wrong_flag_is_one_line_before_anything_is_asked(cloud, flag, message):
    status, output = cloud.launch("run", *RUN, flag)
    assert status == 1
    assert output.splitlines()[-1].startswith("error: ") and message in output
    assert not cloud.calls()


def test_the_last_binding_of_the_checkpoint_counts(cloud):
    write(cloud.clone / GIN, 'x.Experiment.initial_checkpoint = "data/own/weights-0"\n# initial_\n')
    cloud.commit()
    for value, is_fine in (("''", True), ("'gs://bucket/weights-0'", True), ("'here-0'", False)):
        gin = f"--gin=experiment.Experiment.initial_checkpoint = {value}"
        status, output = cloud.launch("run", *RUN, gin, "--dry-run")
        assert (status == 0) == is_fine, output
    status, output = cloud.launch("run", *RUN, "--dry-run")
    assert status == 1 and "weights-0" in output


def test_known_classes_and_those_on_the_bucket_are_reached(cloud):
    for source in ("coco", "gs://bucket/records"):
        gin = f"--gin=datasets.load.source = '{source}'"
        status, output = cloud.launch("run", *RUN, gin, "--dry-run")
        assert status == 0, output


def test_what_is_not_committed_is_not_trained(cloud):
    write(cloud.clone / GIN, "changed")
    status, output = cloud.launch("run", *RUN)
    assert status == 1
    assert GIN in output and "commit them first" in output
    assert not cloud.machines() and not any("create" in call for call in cloud.calls())
