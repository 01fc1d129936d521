"""The training loop: its calls of Keras `fit`, its progress and its signals."""

import io
import re
import signal
import sys
import threading

import pytest

from tfsimclr.modes import pretrain
from tfsimclr.runs import folder as run_folder
from tfsimclr.training import checkpoints, fit, progress

pytestmark = pytest.mark.usefixtures("shallow_module")


@pytest.mark.parametrize(
    ("done", "segments"),
    [
        (0, [(0, 10)]),
        (3, [(3, 5), (5, 10)]),
        (5, [(5, 10)]),
        (8, [(8, 10)]),
        (10, []),
    ],
)
def test_a_half_done_epoch_is_a_segment_of_its_own(done, segments):
    assert list(fit.fit_segments(done, 10, 5)) == segments


def test_off_a_terminal_each_epoch_is_one_line_with_the_time_left(tiny, capsys):
    config, dataset, folder = tiny()
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    lines = capsys.readouterr().out.splitlines()
    lines = [x for x in lines if not x.startswith(("Data: ", "  "))]  # of the summary
    assert len(lines) == config.epochs
    for number, line in enumerate(lines, 1):
        pattern = rf"Epoch {number}/2: loss [\d.]+, .*contrastive_top1 .*; \d+ s left\."
        assert re.fullmatch(pattern, line), line
    assert lines[-1].endswith("; 0 s left.")


def test_on_a_terminal_keras_shows_its_bar(tiny, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    config, dataset, folder = tiny(epochs=1)
    run_folder.prepare(config)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    pretrain.pretrain(config, dataset, folder)
    assert "5/5" in terminal.getvalue() and "left." not in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (99.4, "99 s"),
        (120, "2 min"),
        (5940, "99 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_a_duration_is_told_in_its_largest_units(seconds, text):
    assert progress.duration(seconds) == text


def test_outside_of_the_main_thread_it_trains_without_signal_handlers(tiny, capsys):
    config, dataset, folder = tiny(epochs=1)
    run_folder.prepare(config)
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=pretrain.pretrain, args=(config, dataset, folder))
    thread.start()
    thread.join()
    assert checkpoints.load_latest(folder / "checkpoints")[1]["step"] == 5
    assert capsys.readouterr().out.count("Note: the training runs outside of") == 1
    assert signal.getsignal(signal.SIGINT) is before
