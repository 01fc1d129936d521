"""Runs that are stopped in the middle, and the comparison with those that are not."""

import contextlib

import numpy as np
import pytest

from tfsimclr.training import checkpoints, recorder


@contextlib.contextmanager
def stopped_at(step):
    """Stops the training in the block after that step, as SIGTERM does."""
    original = recorder.Recorder.on_train_batch_end

    def stopping(self, batch, logs=None):
        self.interrupted = int(self.model.step) == step
        original(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_train_batch_end", stopping)
        with pytest.raises(KeyboardInterrupt):
            yield


def assert_same_checkpoints(folder, other):
    """Asserts that the newest checkpoints of two runs are equal to the last bit."""
    ours, _ = checkpoints.load_latest(folder / "checkpoints")
    theirs, _ = checkpoints.load_latest(other / "checkpoints")
    assert_same_arrays(ours, theirs)


def assert_same_arrays(ours, theirs):
    """Asserts that two dictionaries have the same keys and equal arrays."""
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)
