"""What a training says about its time, in a log."""

import pytest

from kmax_tf.training import progress


class NoSteps:
    """No step was non-finite."""

    def since(self, step):
        return []

    def check(self):
        pass


@pytest.fixture
def lines(monkeypatch, capsys):
    """A function: [(step, seconds since the start)], first step -> the lines that are printed."""

    def show(reached, start=0):
        clock = iter([0.0, *(seconds for _, seconds in reached)])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        options = dict(needs_void=False, describe_step=None)
        with progress.Progress(start, 1200, 16, **options) as shown:
            for step, _ in reached:
                shown.show(step, {"loss/total": 2.5}, NoSteps(), summary=True)
        return capsys.readouterr().err.splitlines()

    return show


def test_the_first_line_estimates_the_rest(lines):
    assert lines([(1, 41.0), (2, 41.5), (4, 42.5), (8, 44.5), (16, 48.5), (100, 90.5)]) == [
        "first step after 41 s, then 0.50 s a step: about 10 min to go"
    ]


def test_a_log_gets_a_line_a_minute_and_the_last(lines):
    reached = [(401 + n, 20.0 + 10 * n) for n in range(14)] + [(1200, 8010.0)]
    assert lines(reached, start=400) == [
        "first step after 20 s, then 10.00 s a step: about 2.2 h to go",
        "step 408 of 1200, 1.6 images/s, loss 2.500: about 2.2 h to go",
        "step 414 of 1200, 1.6 images/s, loss 2.500: about 2.2 h to go",
        "step 1200 of 1200, 1.6 images/s, loss 2.500",
    ]


def test_a_short_training_tells_its_time_and_loss_at_the_end(lines):
    assert lines([(1198, 3.0), (1200, 4.0)], start=1197) == [
        "first step after 3 s, then 0.50 s a step",
        "step 1200 of 1200, 32.0 images/s, loss 2.500",
    ]
    assert lines([(1200, 3.0)], start=1199) == ["step 1200 of 1200, loss 2.500"]


@pytest.mark.parametrize(
    "seconds, words", [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_duration(seconds, words):
    assert progress.duration(seconds) == words
