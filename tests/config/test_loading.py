import itertools

import pytest

from kmax_tf import config, files
from kmax_tf.errors import InputError

_COUNTER = itertools.count()

_TOY = """
import dataclasses

from kmax_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 8
    name: str = "small"
    act: object = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    run_dir: str
    model: Model = Model()
    steps: int = 1
    rates: object = ()

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")


def relu(x, slope=0.0):
    return x if x > 0 else slope * x


def broken(slope):
    raise TypeError("a mistake in the code")


LIMIT = 3
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A module with a fresh name: gin's registry outlives a test."""
    package = f"toys{next(_COUNTER)}"
    (tmp_path / "path" / package).mkdir(parents=True)
    (tmp_path / "path" / package / "__init__.py").write_text("")
    (tmp_path / "path" / package / "toy.py").write_text(_TOY)
    (tmp_path / "path" / package / "broken.py").write_text("import no_such_thing\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return __import__(f"{package}.toy").toy


@pytest.fixture
def write(tmp_path, toy):
    """Writes a gin file that imports toy, and returns its path; the text starts in line 3."""

    def write(text, name="run.gin"):
        package = toy.__package__
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        header = f"from __gin__ import dynamic_registration\nfrom {package} import toy\n"
        path.write_text(header + text)
        return str(path)

    return write


def _error(target, gin_file, bindings=()):
    with pytest.raises(InputError) as caught:
        config.load(target, gin_file, bindings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_smallest_file(toy, write):
    loaded = config.load(toy.Experiment, write('toy.Experiment.run_dir = "a"\n'))
    assert loaded == toy.Experiment(run_dir="a")
    assert type(loaded) is toy.Experiment


def test_references_scopes_and_blocks(toy, write):
    path = write("""
toy.Experiment:
    run_dir = "a"
    model = @big/toy.Model()
big/toy.Model.width = 64
toy.Model.act = @toy.relu
toy.relu.slope = 0.5
""")
    loaded = config.load(toy.Experiment, path)
    assert loaded.model.width == 64
    assert loaded.model.act(-2) == -1


def test_load_forgets_the_last_file(toy, write):
    config.load(toy.Experiment, write('toy.Experiment.run_dir = "a"\ntoy.Experiment.steps = 5\n'))
    assert config.load(toy.Experiment, write('toy.Experiment.run_dir = "a"\n')).steps == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("toy.Experiment.step = 1\n", "run.gin:3: toy.Experiment has no 'step'; did you mean 'st"),
        ("toy.Experiment.qqq = 1\n", "has no 'qqq'; there are: run_dir, model, steps, rates"),
        ("toy.Experimnt.steps = 1\n", "run.gin:3: toy has no 'Experimnt'; did you mean 'Experime"),
        ("Experiment.steps = 1\n", "named 'Experiment'; did you mean 'toy.Experiment'?"),
        ("toi.Experiment.steps = 1\n", "no import is named 'toi'; did you mean 'toy'?"),
        ("toy.Experiment.model = @toy.Modell()\n", "toy has no 'Modell'; did you mean 'Model'?"),
        ("toy.steps = 1\n", "run.gin:3: toy is neither a class nor a function"),
        ("toy.Experiment.model = @toy.LIMIT\n", "toy.LIMIT is neither a class nor a function"),
        ("toy.Experiment.run_dir = abc\n", "run.gin:3: cannot read abc (a string needs quotes)"),
        ("toy.Experiment.rates = [1,\n", "run.gin:"),
        ("\ntoy.Experiment 3\n", "run.gin:4: Couldn't parse statement, expected ':' or '='."),
        ("toy.Experiment.steps = 5\n", "run.gin: Experiment needs a value for 'run_dir'"),
        (
            'toy.Experiment.run_dir = "a"\ntoy.Experiment.steps = 0\n',
            "run.gin: steps must be at least 1, got 0",
        ),
        ("toy.Model.width = 5\n", "run.gin: binds no parameter of Experiment"),
        ("toy.Experiment.steps = 2\nSTEPS = 3\n", "run.gin:4: macros are unsupported; bind the"),
        ("toy.Experiment.rates = [%STEPS]\n", "run.gin:3: macros are unsupported; bind the par"),
        ("toy.Experiment.run_dir = %gin.REQUIRED\n", "run.gin:3: macros are unsupported; bind"),
        ("toy.Experiment.model = @gin.singleton()\n", "no import is named 'gin'"),
        ("import tensorflw\n", "run.gin:3: no module 'tensorflw'; did you mean 'tensorflow'?"),
        ('include "modls/base.gin"\n', "run.gin:3: no gin file 'modls/base.gin'"),
        ('include "bsse.gin"\n', "no gin file 'bsse.gin'; did you mean 'base.gin'?"),
    ],
)
def test_mistakes(toy, write, text, message):
    write("", name="base.gin")
    assert message in _error(toy.Experiment, write(text))


def test_imports_that_fail(toy, write):
    package = toy.__package__
    error = _error(toy.Experiment, write(f"from {package} import toi\n"))
    assert f"no module '{package}.toi'; did you mean 'toy'?" in error
    error = _error(toy.Experiment, write(f"from {package}.toy import Model\n"))
    assert f"{package}.toy is a module; import it and write toy.Model" in error
    error = _error(toy.Experiment, write(f"from {package} import broken\n"))
    assert f"cannot import {package}.broken: No module named 'no_such_thing'" in error


def test_errors_in_the_code_keep_their_traceback(toy, write):
    path = write('toy.Experiment.run_dir = "a"\ntoy.Experiment.rates = @toy.broken()\n')
    with pytest.raises(TypeError, match="a mistake in the code"):
        config.load(toy.Experiment, path, ["toy.broken.slope = 1"])


def test_file_without_dynamic_registration(toy, tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(f"from {toy.__package__} import toy\ntoy.Experiment.steps = 1\n")
    assert "run.gin:2: put `from __gin__ import dynamic_registration`" in _error(
        toy.Experiment, str(path)
    )


def test_missing_file(toy, write, tmp_path):
    write("")
    error = _error(toy.Experiment, str(tmp_path / "runn.gin"))
    assert error.endswith(f"; did you mean '{tmp_path / 'run.gin'}'?")


def test_include_comes_first(toy, write):
    write("toy.Experiment.steps = 5\n", name="base.gin")
    path = write('toy.Experiment.run_dir = "a"\ninclude "base.gin"\n')
    assert "run.gin:4: include comes after the binding in line 3" in _error(toy.Experiment, path)
    path = write('include "base.gin"\ntoy.Experiment.run_dir = "a"\n')
    assert config.load(toy.Experiment, path).steps == 5


def test_include_cycle(toy, write):
    write('include "run.gin"\n', name="base.gin")
    assert "base.gin:3: " in _error(toy.Experiment, write('include "base.gin"\n'))


def test_file_included_twice_does_not_undo_overrides(toy, write):
    write('toy.Experiment.run_dir = "a"\ntoy.Experiment.steps = 1\n', name="base.gin")
    write('include "base.gin"\ntoy.Experiment.steps = 2\n', name="one.gin")
    write('include "base.gin"\ntoy.Model.width = 3\n', name="two.gin")
    path = write('include "one.gin"\ninclude "two.gin"\n')
    assert config.load(toy.Experiment, path).steps == 2


def test_includes_from_any_working_directory(toy, write, tmp_path, monkeypatch):
    write("toy.Experiment.steps = 5\n", name="models/base.gin")
    write('toy.Experiment.run_dir = "a"\n', name="gin/data.gin")
    write('include "../models/base.gin"\ninclude "gin/data.gin"\n', name="runs/run.gin")
    monkeypatch.setattr(files, "GIN_ROOT", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    for folder, path in [("elsewhere", "runs/run.gin"), ("runs", "run.gin"), (".", "runs/run.gin")]:
        monkeypatch.chdir(tmp_path / folder)
        assert config.load(toy.Experiment, path) == toy.Experiment(run_dir="a", steps=5)


def test_bindings_win_and_reach_every_import_of_a_file(toy, write):
    write("toy.Experiment.steps = 5\n", name="base.gin")
    path = write('include "base.gin"\ntoy.Experiment.run_dir = "a"\n')
    bindings = [
        "toy.Experiment.steps = 7",
        'toy.Experiment.run_dir = "b"',
        "toy.Experiment.model = @toy.Model()",
        "toy.Model.width = 2",
    ]
    loaded = config.load(toy.Experiment, path, bindings)
    assert loaded == toy.Experiment(run_dir="b", steps=7, model=toy.Model(width=2))


@pytest.mark.parametrize(
    "binding, message",
    [
        ("toy.Experiment.step = 1", "has no 'step'; did you mean 'steps'?"),
        ("toy.Experiment.run_dir = abc", "cannot read abc (a string needs quotes)"),
        ("toy.Experiment.run_dir", "Couldn't parse statement"),
        ("import toy", "write module.Name.parameter = value"),
        ("", "write module.Name.parameter = value"),
        ("STEPS = 1", "macros are unsupported; bind the parameter"),
    ],
)
def test_mistakes_in_bindings(toy, write, binding, message):
    path = write('toy.Experiment.run_dir = "a"\n')
    assert _error(toy.Experiment, path, [binding]).startswith(f"binding {binding!r}: ")
    assert message in _error(toy.Experiment, path, [binding])


SCOPED = """
toy.Experiment.run_dir = "a"
toy.Experiment.model = @big/toy.Model()
big/toy.Model.width = 64
toy.relu.slope = 0.5
"""


@pytest.mark.parametrize(
    "binding, message",
    [
        ("bog/toy.Model.width = 2", "no reference has the scope 'bog'; did you mean 'big'?"),
        ("toy.Experiment.rates = @bog/toy.Model()", "in the scope 'bog'; did you mean 'big'?"),
        ("big/toy.Experiment.steps = 2", "nothing refers to big/toy.Experiment; bind a parameter"),
        ("toy.relu.slope = 0.1", "nothing refers to toy.relu; bind a parameter to @toy.relu(), or"),
    ],
)
def test_bindings_that_would_change_nothing(toy, write, binding, message):
    path = write(SCOPED)
    assert config.load(toy.Experiment, path).model.width == 64  # a file may bind what is not used
    assert message in (error := _error(toy.Experiment, path, [binding]))
    assert error.startswith(f"binding {binding!r}: ")


def test_bindings_of_a_part_that_bindings_add(toy, write):
    path = write(SCOPED)
    relu = ["toy.Model.act = @big/toy.relu", "big/toy.relu.slope = 0.25"]
    assert config.load(toy.Experiment, path, relu).model.act(-2) == -0.5
    within = ["toy.Model.act = @toy.Experiment()", "big/toy.Experiment.model = None"]
    inner = config.load(toy.Experiment, path, [*within, "big/toy.Experiment.steps = 9"]).model.act
    assert inner.steps == 9  # a part takes the scope of the part that it belongs to
    error = _error(toy.Experiment, path, [*relu, "toy.Experiment.model = None"])
    assert "nothing refers to toy.Model" in error


def test_scopes_that_a_file_misspells(toy, write):
    write(SCOPED, name="base.gin")
    path = write('include "base.gin"\n\nbog/toy.Model.width = 2\n')
    assert "run.gin:5: no reference has the scope 'bog'; did you" in _error(toy.Experiment, path)
    path = write('include "base.gin"\ntoy.Experiment.rates = [@bog/toy.Model()]\n')
    assert "run.gin:4: nothing is bound in the scope 'bog'" in _error(toy.Experiment, path)
    path = write('include "base.gin"\nother/toy.Model.width = 2\n')
    assert config.load(toy.Experiment, path).model.width == 64  # for another experiment


def test_a_scope_whose_reference_is_replaced(toy, write, tmp_path):
    bindings = ["toy.Experiment.model = @bigger/toy.Model()", "bigger/toy.Model.width = 128"]
    loaded = config.load(toy.Experiment, write(SCOPED), bindings)
    (tmp_path / "config.gin").write_text(config.resolved())  # as the evaluator reads it
    assert config.load(toy.Experiment, str(tmp_path / "config.gin")) == loaded
    assert loaded.model.width == 128


def test_resolved_text_alone_gives_the_same(toy, write, tmp_path):
    package = toy.__package__
    write("toy.Experiment.steps = 5\n", name="base.gin")
    write(f"import {package}.toy\n{package}.toy.relu.slope = 0.5\n", name="act.gin")
    path = write(f"""
import {package}.toy as other
include "base.gin"
include "act.gin"
other.Experiment.run_dir = "{"long and longer " * 12}"
toy.Experiment.model = @big/toy.Model()
toy.Experiment.rates = {{"a": [1e-05, -2.0], "b": (None, True, @toy.Model())}}
toy.Model.act = @toy.relu
big/toy.Model.width = 64
""")
    loaded = config.load(toy.Experiment, path, ["toy.Experiment.steps = 2"])
    text = config.resolved()
    assert "include" not in text and "steps = 5" not in text
    alone = tmp_path / "alone" / "config.gin"
    alone.parent.mkdir()
    alone.write_text(text)
    again = config.load(toy.Experiment, str(alone))
    assert again == loaded
    assert again.model.act(-2) == -1
    assert config.resolved() == text


def test_a_file_that_is_no_text(toy, tmp_path):
    (tmp_path / "latin.gin").write_bytes("# caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="latin.gin: is no gin file, or not UTF-8"):
        config.load(toy, str(tmp_path / "latin.gin"))
