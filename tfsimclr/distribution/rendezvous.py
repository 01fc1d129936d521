"""The workers of a run find each other before TensorFlow connects them.

TensorFlow waits for ever, without a word, for a worker that does not start, and it lets
two programs of one user share a port. So the chief first listens at its own address of
`TF_CONFIG` and the others connect to it. It knows then who is missing and whether all
have the same versions. The connections stay open for the watchdog; the port is free for
TensorFlow again.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Callable

from tfsimclr.distribution import frames
from tfsimclr.distribution.cluster import Cluster
from tfsimclr.errors import UserError

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5.0  # for the first message of somebody who is connected


def meet(cluster: Cluster, facts: dict[str, str], timeout: float) -> dict:
    """Waits for all workers and compares what must be equal.

    Args:
        cluster: The workers.
        facts: Name -> value of what must be the same on all, such as versions.
        timeout: Seconds to wait for the others.

    Returns:
        Position in the cluster -> connected socket: on the chief for every other
        worker, on the others for the chief.

    Raises:
        UserError: If the port is in use, a worker is missing, or they differ.
    """
    if cluster.is_chief:
        return _listen(cluster, facts, timeout)
    return {0: _connect(cluster, facts, timeout)}


def differences(name: str, there: dict, here: dict) -> str:
    """Returns what differs between a worker and the chief; "" if nothing does.

    Args:
        name: Description of the worker.
        there: Setting -> value of the worker.
        here: Setting -> value of the chief.
    """
    parts = [
        f"{key} is {there.get(key, 'missing')} there and {here.get(key, 'missing')} on "
        "the chief"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    return f"{name} differs from the chief: {'; '.join(parts)}" if parts else ""


def _listen(cluster: Cluster, facts: dict[str, str], timeout: float) -> dict:
    deadline = time.monotonic() + timeout
    links: dict[int, socket.socket] = {}
    problem = ""
    with _server(cluster) as server, contextlib.ExitStack() as on_error:
        while len(links) < cluster.size - 1 and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                link, _ = server.accept()
            except TimeoutError:
                missing = [i for i in range(1, cluster.size) if i not in links]
                problem = _missing(cluster, missing, timeout)
                break
            hello = _hello(link, min(_HELLO_SECONDS, deadline - time.monotonic()))
            if hello is None:  # a port scanner, or a worker that ended at once
                link.close()
                continue
            position = hello["position"]
            on_error.callback(link.close)
            if position in links and _has_ended(links[position]):
                links.pop(position).close()  # it was started again
            problem = _judge(cluster, facts, hello, links)
            links[position if position not in links else -1] = link
        for link in links.values():
            with contextlib.suppress(OSError):
                frames.send(link, {"problem": problem})
        if problem:
            raise UserError(problem)
        on_error.pop_all()
    return links


def _judge(cluster: Cluster, facts, hello: dict, links: dict) -> str:
    """Returns what is wrong with a worker that says hello, or ""."""
    position = hello["position"]
    if tuple(hello["addresses"]) != cluster.addresses:
        return (
            f"TF_CONFIG of the worker at position {position} has other addresses than "
            f"the chief's: {', '.join(hello['addresses'])} there, "
            f"{', '.join(cluster.addresses)} here. Give all workers the same cluster."
        )
    name = cluster.describe(position)
    if position in links:
        return (
            f"two workers say that they are {name}. Give every worker its own index in "
            "TF_CONFIG, and stop what is left of an earlier run."
        )
    if hello["problem"]:
        return f"{name} cannot start: {hello['problem']}"
    difference = differences(name, hello["facts"], facts)
    return f"{difference}. Install the same versions on all." if difference else ""


def _has_ended(link: socket.socket) -> bool:
    """Returns whether the other end of an idle connection is closed."""
    link.setblocking(False)
    try:
        return not link.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        link.setblocking(True)


def _hello(link: socket.socket, timeout: float) -> dict | None:
    """Returns the first message of a worker, or None if it is not one."""
    link.settimeout(max(0.01, timeout))
    try:
        message = frames.receive(link)
        if message is None or not isinstance(message[0].get("position"), int):
            return None
        frames.send(link, {"welcome": True})
    except OSError:
        return None
    link.settimeout(None)
    return message[0]


def _connect(cluster: Cluster, facts: dict[str, str], timeout: float) -> socket.socket:
    hello: dict = {
        "position": cluster.position,
        "addresses": cluster.addresses,
        "facts": facts,
        "problem": "",
    }
    try:
        _server(cluster).close()
    except UserError as error:
        hello["problem"] = str(error)
    deadline = time.monotonic() + timeout
    while True:
        link = _until(deadline, lambda: _greet(cluster, hello, timeout))
        if hello["problem"]:
            if link is not None:
                link.close()
            raise UserError(hello["problem"])
        if link is not None:
            return link
        raise UserError(_missing(cluster, [0], timeout))


def _until(deadline: float, action: Callable):
    """Repeats an action until it returns something, or None at the deadline."""
    while True:
        result = action()
        if result is not None or time.monotonic() > deadline:
            return result
        time.sleep(_RETRY_SECONDS)


def _greet(cluster: Cluster, hello: dict, timeout: float) -> socket.socket | None:
    """Connects to the chief, once.

    Returns:
        The connection after the chief has found all workers, or None if nobody or
        another program is there.

    Raises:
        UserError: If the chief has found a problem.
    """
    host, _, port = cluster.addresses[0].rpartition(":")
    try:
        link = socket.create_connection((host.strip("[]"), int(port)), timeout=2.0)
    except OSError:
        return None  # not started yet, or its name is not known yet
    try:
        link.settimeout(min(_HELLO_SECONDS, timeout))
        frames.send(link, hello)
        message = frames.receive(link)
        if message is not None and "welcome" in message[0]:
            # The rest comes when all are there, or the chief gives up.
            link.settimeout(timeout + _HELLO_SECONDS)
            message = frames.receive(link)
    except OSError:
        message = None
    if message is None or "problem" not in message[0]:
        link.close()
        return None
    link.settimeout(None)
    if message[0]["problem"]:
        link.close()
        raise UserError(message[0]["problem"])
    return link


def _server(cluster: Cluster) -> socket.socket:
    """Returns a socket that listens at the port of this worker.

    Raises:
        UserError: If the port is in use or may not be used.
    """
    port = int(cluster.addresses[cluster.position].rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of this machine is in use, and TF_CONFIG gives it to "
                f"{cluster.describe(cluster.position)}. Stop the other program, which "
                "may be left of an earlier run, or choose another port."
            ) from error
        raise UserError(
            f"port {port} of {cluster.describe(cluster.position)} cannot be used: "
            f"{error.strerror}. Choose another port in TF_CONFIG, above 1023."
        ) from error


def _missing(cluster: Cluster, positions: list[int], timeout: float) -> str:
    names = " and ".join(cluster.describe(i) for i in positions)
    do = "does" if len(positions) == 1 else "do"
    return (
        f"{names} {do} not answer within --worker_timeout={timeout:g} s. Start all "
        f"{cluster.size} workers at the same time, and check that the machines reach "
        "each other's ports."
    )
