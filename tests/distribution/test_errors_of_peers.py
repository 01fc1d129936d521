"""Which errors of TensorFlow mean that another worker is gone."""

import re

import pytest
import tensorflow as tf
from local_workers import local_cluster

from tfsimclr.distribution import workers

pytestmark = pytest.mark.quick
# As TensorFlow 2.21 writes them.
DIED = (
    "Collective ops is aborted by: Error reported from /job:worker/task:1: The "
    "following tasks are unhealthy (stopped sending heartbeats):\n"
    "/job:worker/replica:0/task:1\nThe tasks have crashed."
)
RESET = (
    "Collective ops is aborted by: recvmsg:Connection reset by peer\nAdditional GRPC "
    "error information from remote target /job:worker/replica:0/task:0 while calling"
)


class Dog:
    cluster = local_cluster(2, ports=[1, 2])
    timeout = 20.0


@pytest.fixture
def in_cluster(monkeypatch):
    monkeypatch.setattr(workers, "_watchdog", Dog())
    monkeypatch.setattr(workers, "_VERDICT_SECONDS", 0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (tf.errors.UnavailableError(None, None, DIED), r"lost worker 1 \(127.0.0.1:2"),
        (tf.errors.UnavailableError(None, None, RESET), r"lost worker 0 .*the chief"),
        (tf.errors.InternalError(None, None, "NCCL: unhandled"), "lost another worker"),
        (
            tf.errors.DeadlineExceededError(None, None, "Collective has timed out"),
            "waited longer than --worker_timeout=20 s",
        ),
    ],
)
def test_a_lost_worker_is_one_line(error, message, in_cluster):
    text = workers.explain(error)
    assert "\n" not in text and text.endswith("goes on from the newest checkpoint.")
    assert re.search(message, text), text


def test_other_errors_keep_their_traceback(in_cluster):
    assert workers.explain(tf.errors.InternalError(None, None, "CUDA error")) is None
    assert workers.explain(KeyError("step")) is None


def test_alone_every_error_does():
    assert workers.explain(tf.errors.UnavailableError(None, None, DIED)) is None
