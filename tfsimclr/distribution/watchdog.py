"""Keeps the workers of a run together: all go on, or all end with a reason.

TensorFlow's collective operations wait for a worker that hangs, and report one that
died late and with a traceback. The watchdog has connections of its own: every worker is
connected to the chief, tells it every second that it is alive, and passes on why it
ends.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable

from tfsimclr.distribution import frames, rendezvous
from tfsimclr.distribution.cluster import Cluster
from tfsimclr.errors import UserError

GO_ON = "The same command on all workers goes on from the newest checkpoint."
IS_LATE = (
    "its disk or its data may hang. If the chief takes that long to save a checkpoint, "
    "raise --worker_timeout."
)
_BEAT_SECONDS = 1.0
_CHIEF_SECONDS = 3.0
_END_SECONDS = 10.0


class WorkerError(UserError):
    """Another worker has ended or does not answer."""


class Watchdog:
    """The connections of one worker to the chief, or of the chief to all others.

    Args:
        cluster: The workers.
        links: Position -> connected socket, from `rendezvous.meet`.
        timeout: Seconds without a sign of life after which a worker counts as hanging.
        on_failure: Called once with a message, in a thread of the watchdog, when
            another worker has ended or hangs. The main thread may be inside of
            TensorFlow, where nothing interrupts it, so this has to end the process.
    """

    def __init__(
        self,
        cluster: Cluster,
        links: dict[int, socket.socket],
        timeout: float,
        on_failure: Callable[[str], None],
    ):
        self.cluster = cluster
        self.timeout = timeout
        self._links = links
        self._on_failure = on_failure
        self._locks = {position: threading.Lock() for position in links}
        self._inbox: dict[int, queue.Queue] = {p: queue.Queue() for p in links}
        self._seen = dict.fromkeys(links, time.monotonic())
        self._ended = threading.Event()  # in order: the chief has said so
        self._failing = threading.Lock()
        self._failure = ""
        self._exchanges = 0
        for position in links:
            threading.Thread(target=self._read, args=[position], daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def exchange(
        self, value, combine: Callable[[list], object], timeout: float | None = None
    ):
        """Returns `combine` of the values of all workers, on every worker.

        Every worker has to call it, in the same order.

        Args:
            value: JSON-serialisable value of this worker.
            combine: Function of the list of values, the chief's first, to a value that
                is JSON-serialisable. The chief calls it.
            timeout: Seconds to wait for the others; None waits as long as they are
                alive.

        Raises:
            WorkerError: If another worker ends or hangs, or does not call it in time.
        """
        self._exchanges += 1
        number = self._exchanges
        deadline = None
        if timeout is not None:
            # The chief knows who is late, so the others give it the time to say so.
            grace = 0.0 if self.cluster.is_chief else _CHIEF_SECONDS
            deadline = time.monotonic() + timeout + grace
        if not self.cluster.is_chief:
            self._send(0, {"exchange": number, "value": value})
            return self._receive(0, number, deadline)[0]["value"]
        values = [
            self._receive(position, number, deadline)[0]["value"]
            for position in sorted(self._links)
        ]
        result = combine([value, *values])
        for position in self._links:
            self._send(position, {"exchange": number, "value": result})
        return result

    def broadcast(self, content: bytes | None) -> bytes:
        """Returns the bytes of the chief on every worker.

        Args:
            content: The bytes on the chief; unused on the others.

        Raises:
            WorkerError: If another worker ends or hangs.
        """
        self._exchanges += 1
        number = self._exchanges
        if not self.cluster.is_chief:
            return self._receive(0, number)[1]
        for position in self._links:
            self._send(position, {"exchange": number}, content or b"")
        return content or b""

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is true on any worker; see `exchange`.

        It is for workers that are at the same step, and waits for `timeout` only.
        """
        return bool(self.exchange(flag, any, self.timeout))

    def check_equal(self, values: dict[str, str], remedy: str) -> None:
        """Checks that values are the same on all workers; see `exchange`.

        Args:
            values: Name -> value.
            remedy: End of the message.

        Raises:
            UserError: On every worker, if one differs from the chief.
        """

        def compare(all_values: list) -> str:
            for position, there in enumerate(all_values):
                name = self.cluster.describe(position)
                difference = rendezvous.differences(name, there, values)
                if difference:
                    return f"{difference}. {remedy}"
            return ""

        problem = self.exchange(values, compare)
        if problem:
            raise UserError(problem)

    def finish(self) -> None:
        """Ends the run in order: the others wait here until the chief has finished.

        TensorFlow on the chief hangs if other workers have left before it.

        Raises:
            WorkerError: If the chief ends with an error, or hangs.
        """
        if not self.cluster.is_chief:
            while not self._ended.wait(0.2):
                self._raise_failure()
            return
        self._ended.set()
        for position in self._links:
            with contextlib.suppress(OSError):
                self._send(position, {"end": True})
        deadline = time.monotonic() + _END_SECONDS
        for position in self._links:  # the reader puts None at the end
            while time.monotonic() < deadline:
                with contextlib.suppress(queue.Empty):
                    if self._inbox[position].get(timeout=0.1) is None:
                        break

    def release(self) -> None:
        """Stops watching: from here on the others may end."""
        self._ended.set()

    def claim(self) -> bool:
        """Returns whether the caller is the first that ends this process.

        The main thread and the watchdog may notice the same fault. Only one of them may
        say so.
        """
        return self._failing.acquire(blocking=False)

    def tell(self, message: str, is_stop: bool = False) -> None:
        """Tells the others that and why this process ends.

        Args:
            message: What the user of this worker is told.
            is_stop: Whether the user has stopped the run; it is no failure.
        """
        if self._ended.is_set():
            return  # they are about to end themselves
        self._ended.set()
        content = {"failure": message, "by": self.cluster.position, "stop": is_stop}
        self._forward(content, skip=())

    def _read(self, position: int) -> None:
        """Reads all messages of one connection, in a thread."""
        link = self._links[position]

        def on_bytes():
            self._seen[position] = time.monotonic()

        name = self.cluster.describe(position)
        try:
            while (message := frames.receive(link, on_bytes)) is not None:
                content, _ = message
                if "exchange" in content:
                    self._inbox[position].put(message)
                elif "end" in content:
                    self._ended.set()
                elif "failure" in content:
                    self._fail_of(content)
        except OSError:
            pass  # as if it had ended
        if not self._ended.is_set():
            self._fail(
                f"{name} ended without a word: it was killed, or its machine or the "
                f"network failed. {GO_ON}"
            )
        self._inbox[position].put(None)

    def _beat(self) -> None:
        """Sends signs of life and checks those of the others, in a thread."""
        interval = min(_BEAT_SECONDS, self.timeout / 5)
        before = time.monotonic()
        while not self._ended.wait(interval):
            now = time.monotonic()
            if now - before > interval + self.timeout / 2:
                # This process itself was stopped; the others may be alive.
                self._seen = dict.fromkeys(self._links, now)
            before = now
            for position, lock in self._locks.items():
                if now - self._seen[position] > self.timeout:
                    self._fail(
                        f"{self.cluster.describe(position)} gave no sign of life for "
                        f"--worker_timeout={self.timeout:g} s: it hangs, or its "
                        f"machine or the network failed. Stop what is left of it. "
                        f"{GO_ON}"
                    )
                    return
                # A long message is a sign of life too.
                if lock.acquire(blocking=False):
                    try:
                        frames.send(self._links[position], {"beat": True})
                    except OSError:
                        pass  # the reader notices
                    finally:
                        lock.release()

    def _fail_of(self, content: dict) -> None:
        name = self.cluster.describe(content["by"])
        if self.cluster.is_chief:
            self._forward(content, skip=(content["by"],))
        verb = "was stopped" if content["stop"] else "ended"
        self._fail(f"{name} {verb}: {content['failure']}", forward=False)

    def _fail(self, message: str, forward: bool = True) -> None:
        if self._ended.is_set() or not self.claim():
            return
        if forward and self.cluster.is_chief:
            self.tell(message)
        self._ended.set()
        self._failure = message
        self._on_failure(message)

    def _forward(self, content: dict, skip: tuple[int, ...]) -> None:
        for position, link in self._links.items():
            # A worker that hangs must not hold up the others.
            if position in skip or not self._locks[position].acquire(timeout=1.0):
                continue
            try:
                link.settimeout(1.0)
                frames.send(link, content)
                link.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended already
            finally:
                self._locks[position].release()

    def _send(self, position: int, content: dict, blob: bytes = b"") -> None:
        try:
            with self._locks[position]:
                frames.send(self._links[position], content, blob)
        except OSError:
            self._wait_for_failure(position)

    def _receive(self, position: int, number: int, deadline: float | None = None):
        while True:
            with contextlib.suppress(queue.Empty):
                message = self._inbox[position].get(timeout=0.2)
                if message is None:
                    self._wait_for_failure(position)
                if message[0]["exchange"] != number:
                    raise RuntimeError(
                        f"expected exchange {number}, got {message[0]['exchange']}"
                    )
                return message
            self._raise_failure()
            if deadline is not None and time.monotonic() > deadline:
                raise WorkerError(
                    f"{self.cluster.describe(position)} is not at the same step after "
                    f"--worker_timeout={self.timeout:g} s, though its process is "
                    f"alive: {IS_LATE} {GO_ON}"
                )

    def _wait_for_failure(self, position: int):
        """Raises what the reader of a broken connection finds out about it."""
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            self._raise_failure()
            time.sleep(0.05)
        raise WorkerError(f"{self.cluster.describe(position)} has ended. {GO_ON}")

    def _raise_failure(self) -> None:
        if self._failure:
            raise WorkerError(self._failure)
