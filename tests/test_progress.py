import contextlib
import io

from utils import progress, training


def shown(function, *arguments, stream=None, **more):
    """What a function writes to standard error."""
    with contextlib.redirect_stderr(stream or io.StringIO()) as stream:
        function(*arguments, **more)
    return stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(steps, epochs, done=0, expected=None, **more):
    steps_left = expected and (lambda: expected)
    total = done + steps * epochs
    bar = training.TrainingProgress("training", total, done, expected_steps=steps_left, **more)
    for epoch in range(epochs):
        for step in range(steps):
            bar.on_train_batch_end(step, {"loss": 1 / (step + 1)})
        bar.on_epoch_end(epoch, {"loss": 0.25, "accuracy": 0.5})
    bar.close()


def test_a_log_has_a_line_an_epoch_and_no_codes():
    text = shown(train, 500, 3)
    assert not set(text) & {"\r", "\x1b", "\b"}
    lines = text.splitlines()
    assert len(lines) == 3
    assert "500/1500" in lines[0] and "loss=0.25" in lines[0] and "accuracy=0.5" in lines[0]
    assert "1500/1500" in lines[-1]


def test_a_training_that_is_to_end_sooner_is_shown_against_its_end():
    assert "500/700" in shown(train, 500, 1, expected=700)


def test_a_log_has_a_line_a_minute_within_an_epoch(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    text = shown(train, 20, 1)
    assert len(text.splitlines()) > 10 and not set(text) & {"\r", "\x1b", "\b"}


def loop(n, **more):
    assert list(progress.progress(range(n), "scoring", unit="batch", **more)) == list(range(n))


def test_a_short_loop_writes_nothing_to_a_log():
    assert shown(loop, 1000) == ""


def test_a_terminal_has_a_bar():
    for text in (shown(train, 5, 2, stream=Terminal()), shown(loop, 10, stream=Terminal())):
        assert "\r" in text and "10/10" in text


def test_quiet_is_quiet():
    for stream in (None, Terminal()):
        assert shown(train, 5, 2, verbose=0, stream=stream) == ""
        assert shown(loop, 5, verbose=0, stream=stream) == ""


def test_what_was_done_before_counts():
    assert "10/10" in shown(train, 5, 1, done=5)
