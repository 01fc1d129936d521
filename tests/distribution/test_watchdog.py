import dataclasses
import socket
import threading
import time

import pytest
from local_workers import in_threads, local_cluster

from tfsimclr.distribution import frames
from tfsimclr.distribution.watchdog import Watchdog, WorkerError
from tfsimclr.errors import UserError

pytestmark = pytest.mark.quick


class Worker:
    """A watchdog, and what it reports."""

    def __init__(self, cluster, links, timeout):
        self.failures = []
        self.links = links
        self.watchdog = Watchdog(cluster, links, timeout, self.failures.append)


@pytest.fixture
def workers():
    """Returns a function: size, timeout -> connected workers, the chief first."""
    made = []

    def make(size, timeout=20.0, silent=()):
        chief = local_cluster(size, ports=range(1, size + 1))
        pairs = {i: socket.socketpair() for i in range(1, size)}
        links = [{i: a for i, (a, _) in pairs.items()}]
        links += [{0: pairs[i][1]} for i in range(1, size)]
        made.extend(links)
        return [
            None
            if i in silent
            else Worker(dataclasses.replace(chief, position=i), links[i], timeout)
            for i in range(size)
        ]

    yield make
    for links in made:
        for link in links.values():
            link.close()


def wait_for(worker, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not worker.failures and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(worker.failures) == 1, worker.failures
    assert "\n" not in worker.failures[0]
    return worker.failures[0]


def close(worker):
    """What the kernel does when a process is killed."""
    for link in worker.links.values():
        link.shutdown(socket.SHUT_RDWR)


def test_exchange_and_broadcast(workers):
    all_three = workers(3)
    content = bytes(range(256)) * 20000  # more than the buffers of a socket hold

    def talk(worker):
        dog = worker.watchdog
        is_chief = dog.cluster.is_chief
        return (
            dog.exchange(dog.cluster.position, lambda values: values),
            dog.any(dog.cluster.position == 2),
            dog.any(False),
            dog.broadcast(content if is_chief else None) == content,
        )

    results = in_threads(*(lambda w=w: talk(w) for w in all_three))
    assert results == [([0, 1, 2], True, False, True)] * 3


def test_what_differs_is_named_on_all(workers):
    equal = {"--epochs": "2", "images": "abc"}
    values = [equal, equal, {**equal, "--epochs": "3"}]
    results = in_threads(
        *(
            lambda w=w, v=v: w.watchdog.check_equal(v, "Give all the same.")
            for w, v in zip(workers(3), values, strict=True)
        )
    )
    for result in results:
        assert isinstance(result, UserError)
        assert str(result) == (
            "worker 2 (127.0.0.1:3) differs from the chief: --epochs is 3 there and 2 "
            "on the chief. Give all the same."
        )
    same = workers(2)
    assert in_threads(
        *(lambda w=w: w.watchdog.check_equal(equal, "") for w in same)
    ) == [None, None]


@pytest.mark.parametrize("killed", [0, 2])
def test_a_killed_worker_is_named_on_all_others(workers, killed):
    all_three = workers(3)
    close(all_three[killed])
    for position in {0, 1, 2} - {killed}:
        message = wait_for(all_three[position])
        assert f"worker {killed} (127.0.0.1:{killed + 1}" in message
        assert "ended without a word" in message and "same command" in message


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_worker_that_hangs_is_noticed_within_the_time_out(workers, hanging):
    pair = workers(2, timeout=1.0, silent=[hanging])
    start = time.monotonic()
    message = wait_for(pair[1 - hanging])
    assert 0.9 < time.monotonic() - start < 2.5
    assert f"worker {hanging} " in message and "--worker_timeout=1 s" in message


def test_two_alive_workers_do_not_time_out(workers):
    pair = workers(2, timeout=0.5)
    time.sleep(1.5)
    assert [worker.failures for worker in pair] == [[], []]


@pytest.mark.parametrize("failed", [0, 1])
def test_why_a_worker_ends_is_told_to_all(workers, failed):
    all_three = workers(3)
    assert all_three[failed].watchdog.claim()
    all_three[failed].watchdog.tell("the disk is full.")
    close(all_three[failed])
    for position in {0, 1, 2} - {failed}:
        message = wait_for(all_three[position])
        assert message.startswith(f"worker {failed} ")
        assert message.endswith("ended: the disk is full.")
    assert not all_three[failed].failures


def test_the_one_who_waits_is_woken(workers):
    chief, other = workers(2)

    def die():
        time.sleep(0.3)
        close(other)

    result, _ = in_threads(lambda: chief.watchdog.any(False), die)
    assert isinstance(result, WorkerError) and "worker 1" in str(result)


def test_a_worker_that_does_not_come_to_the_same_step_is_named(workers):
    """Its process is alive: the main thread hangs."""
    all_three = workers(3, timeout=0.6)
    start = time.monotonic()
    waiting = [all_three[i].watchdog for i in (0, 1)]
    results = in_threads(*(lambda w=w: w.any(False) for w in waiting))
    assert time.monotonic() - start < 6
    assert isinstance(results[0], WorkerError)
    assert "worker 2 (127.0.0.1:3) is not at the same step" in str(results[0])
    assert isinstance(results[1], WorkerError)


def test_a_long_message_to_a_hanging_worker_ends_too(workers):
    chief, _ = workers(2, timeout=1.0, silent=[1])
    start = time.monotonic()
    send = lambda: in_threads(lambda: chief.watchdog.broadcast(bytes(10**7)))  # noqa: E731
    threading.Thread(target=send, daemon=True).start()
    assert "worker 1" in wait_for(chief)
    assert time.monotonic() - start < 4


def test_the_others_wait_for_the_chief_at_the_end(workers):
    chief, other = workers(2)
    times = {}

    def finish(worker, name, seconds):
        time.sleep(seconds)
        worker.watchdog.finish()
        times[name] = time.monotonic()
        close(worker)

    start = time.monotonic()
    in_threads(lambda: finish(chief, "chief", 0.5), lambda: finish(other, "other", 0.0))
    assert times["other"] - start > 0.4 and times["chief"] >= times["other"] - 0.3
    time.sleep(0.2)
    assert not chief.failures and not other.failures


def test_a_process_says_once_why_it_ends(workers):
    chief, other = workers(2)
    assert chief.watchdog.claim() and not chief.watchdog.claim()
    close(other)
    time.sleep(0.3)
    assert not chief.failures  # the main thread is about to say so


def test_frames_refuse_what_is_no_message():
    left, right = socket.socketpair()
    left.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(frames.ForeignMessage):
        frames.receive(right)
    left.close()
    right.close()
