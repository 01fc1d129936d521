"""This process as one of the workers of a run; alone if there is no cluster.

A process belongs to one cluster at most, as TensorFlow allows no second one, so this
module holds the state of the process.
"""

import os
import re
import sys
import time

from tfsimclr.distribution import rendezvous
from tfsimclr.distribution.cluster import Cluster
from tfsimclr.distribution.watchdog import GO_ON, IS_LATE, Watchdog

_PREFIX = "tfsimclr: "
# What TensorFlow raises when it loses another worker: these errors, and others whose
# text speaks of what workers do together.
_ERRORS_OF_PEERS = (
    *("UnavailableError", "AbortedError", "DeadlineExceededError", "CancelledError"),
)
_TEXT_OF_PEERS = re.compile(r"[Cc]ollective|remote target|NCCL|/job:\w+/.*task:")
_VERDICT_SECONDS = 3.0

_watchdog: Watchdog | None = None


def join(cluster: Cluster, facts: dict[str, str], timeout: float) -> None:
    """Meets the other workers of a cluster and starts the watchdog.

    From here on this process ends if another worker ends or hangs.

    Args:
        cluster: The workers.
        facts: Name -> value of what must be the same on all, such as versions.
        timeout: Seconds to wait for the others, now and later.

    Raises:
        UserError: If a worker is missing or differs, or the port is in use.
    """
    global _watchdog
    links = rendezvous.meet(cluster, facts, timeout)

    def on_failure(message: str) -> None:
        _end_process(f"{_PREFIX}{message}")

    _watchdog = Watchdog(cluster, links, timeout, on_failure)


def watchdog() -> Watchdog | None:
    """Returns the watchdog, or None if this process is alone."""
    return _watchdog


def is_chief() -> bool:
    """Returns whether this process writes the run folder: the chief, or one alone."""
    return _watchdog is None or _watchdog.cluster.is_chief


def timeout() -> float | None:
    """Returns the seconds to wait for another worker, or None if there is none."""
    return None if _watchdog is None else _watchdog.timeout


def any_of(flag: bool) -> bool:
    """Returns whether the flag is true on any worker; all have to call it."""
    return flag if _watchdog is None else _watchdog.any(flag)


def bytes_of_chief(content: bytes) -> bytes:
    """Returns the bytes that the chief has given; all have to call it."""
    return content if _watchdog is None else _watchdog.broadcast(content)


def stop_together() -> None:
    """Waits until all workers are about to stop, after which each of them may end.

    The chief calls it when it has saved.

    Raises:
        WorkerError: If another worker ends before.
    """
    if _watchdog is not None:
        _watchdog.any(False)
        _watchdog.release()


def finish() -> None:
    """Ends this process in order, with all workers; returns if it is alone.

    The others wait here for the chief: TensorFlow on the chief hangs if other workers
    have left before it.

    Raises:
        WorkerError: If the chief ends with an error.
    """
    if _watchdog is None:
        return
    _watchdog.finish()
    _exit(0)


def end(text: str, is_stop: bool = False) -> None:
    """Tells the other workers why this one ends, prints it and ends the process.

    Returns if the process is alone.

    Args:
        text: One line for the user.
        is_stop: Whether the user has stopped the run.
    """
    if _watchdog is None:
        return
    if not _watchdog.claim():  # the watchdog is just about to end the process
        time.sleep(60)
    _watchdog.tell(text.removeprefix(_PREFIX), is_stop)
    _end_process(text)


def explain(error: Exception) -> str | None:
    """Returns a message for an error of TensorFlow that another worker has caused.

    It waits a little for the watchdog, which knows more and ends the process.

    Args:
        error: The error.

    Returns:
        None if the process is alone, or for another error.
    """
    name = type(error).__name__
    if _watchdog is None or not type(error).__module__.startswith("tensorflow."):
        return None
    text = str(error)
    if name not in _ERRORS_OF_PEERS and not _TEXT_OF_PEERS.search(text):
        return None
    time.sleep(_VERDICT_SECONDS)
    timeout = f"--worker_timeout={_watchdog.timeout:g} s"
    if name == "DeadlineExceededError":
        return (
            f"a step waited longer than {timeout} for another worker, whose process "
            f"is alive: {IS_LATE} {GO_ON}"
        )
    who = re.search(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", text)
    names = _watchdog.cluster.names
    if who and (worker := f"{who[1]} {who[2]}") in names:
        lost = _watchdog.cluster.describe(names.index(worker))
    else:
        lost = f"another worker ({name})"
    return (
        f"TensorFlow lost {lost}: it was killed or hangs, or its machine or the "
        f"network failed. {GO_ON}"
    )


def _end_process(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    _exit(1)


def _exit(status: int) -> None:
    """Ends the process without TensorFlow's own farewell.

    In that the workers wait for each other, also for one that is gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
