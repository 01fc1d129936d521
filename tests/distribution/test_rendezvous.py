import dataclasses
import socket
import threading
import time

import pytest
from local_workers import free_ports, in_threads, local_cluster

from tfsimclr.distribution import frames, rendezvous
from tfsimclr.errors import UserError

pytestmark = pytest.mark.quick
FACTS = {"TensorFlow": "2.21.0", "Python": "3.11"}


def members(size):
    chief = local_cluster(size)
    return [dataclasses.replace(chief, position=i) for i in range(size)]


def close(results):
    for links in results:
        for link in links.values() if isinstance(links, dict) else ():
            link.close()


def assert_same_line(results, *parts):
    """All workers end with one line that names the culprit."""
    for result in results:
        assert isinstance(result, UserError), result
        assert "\n" not in str(result)
        for part in parts:
            assert part in str(result)


def test_all_meet_and_the_ports_are_free_again():
    workers = members(3)
    results = in_threads(*(lambda w=w: rendezvous.meet(w, FACTS, 5) for w in workers))
    chief, one, two = results
    assert sorted(chief) == [1, 2] and list(one) == list(two) == [0]
    frames.send(one[0], {"of": "one"})
    frames.send(chief[2], {"to": "two"}, b"bytes")
    assert frames.receive(chief[1]) == ({"of": "one"}, b"")
    assert frames.receive(two[0]) == ({"to": "two"}, b"bytes")
    # TensorFlow binds them while the connections are open.
    for address in workers[0].addresses:
        socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()
    close(results)


def test_who_is_missing_is_named_on_all():
    workers = members(4)
    start = time.monotonic()
    results = in_threads(
        lambda: rendezvous.meet(workers[0], FACTS, 1),
        lambda: rendezvous.meet(workers[2], FACTS, 1),
    )
    missing = [workers[0].describe(i) for i in (1, 3)]
    assert_same_line(results, " and ".join(missing), "--worker_timeout=1 s")
    assert time.monotonic() - start < 5


def test_a_missing_chief_is_named():
    cluster = dataclasses.replace(local_cluster(2), position=1)
    with pytest.raises(UserError, match="worker 0 .*the chief.* does not answer"):
        rendezvous.meet(cluster, FACTS, 0.5)


def test_unequal_versions():
    chief, other = members(2)
    facts = {**FACTS, "TensorFlow": "2.20.0"}
    results = in_threads(
        lambda: rendezvous.meet(chief, FACTS, 5),
        lambda: rendezvous.meet(other, facts, 5),
    )
    assert_same_line(
        results, "worker 1", "TensorFlow is 2.20.0 there and 2.21.0 on the chief"
    )
    assert all("Python is" not in str(result) for result in results)


def test_another_number_of_workers():
    chief, other = members(2)
    more = dataclasses.replace(other, addresses=(*other.addresses, "127.0.0.1:9"))
    results = in_threads(
        lambda: rendezvous.meet(chief, FACTS, 5),
        lambda: rendezvous.meet(more, FACTS, 5),
    )
    assert_same_line(results, "127.0.0.1:9", "the same cluster")


def test_two_workers_of_one_index(monkeypatch):
    chief, other, _ = members(3)
    # On two machines both have the port for themselves.
    server = rendezvous._server
    monkeypatch.setattr(
        rendezvous,
        "_server",
        lambda c: server(c) if c.is_chief else socket.create_server(("127.0.0.1", 0)),
    )
    results = in_threads(
        *(lambda c=c: rendezvous.meet(c, FACTS, 5) for c in (chief, other, other))
    )
    assert_same_line(results, f"two workers say that they are {other.describe(1)}")


def test_a_worker_that_was_started_again_takes_its_place():
    chief, first, second = members(3)

    def die_and_come_back():
        host, _, port = first.addresses[0].rpartition(":")
        while True:
            try:
                link = socket.create_connection((host, int(port)))
                break
            except OSError:
                time.sleep(0.05)
        hello = {"position": 1, "addresses": first.addresses, "facts": FACTS}
        frames.send(link, {**hello, "problem": ""})
        link.close()
        return rendezvous.meet(first, FACTS, 5)

    def late():
        time.sleep(0.7)
        return rendezvous.meet(second, FACTS, 5)

    results = in_threads(
        lambda: rendezvous.meet(chief, FACTS, 5), die_and_come_back, late
    )
    assert all(isinstance(result, dict) for result in results), results
    frames.send(results[1][0], {"alive": True})
    assert frames.receive(results[0][1])[0] == {"alive": True}
    close(results)


@pytest.mark.parametrize("position", [0, 1])
def test_a_port_in_use(position):
    workers = members(2)
    port = int(workers[0].addresses[position].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        results = in_threads(
            *(lambda w=w: rendezvous.meet(w, FACTS, 1.5) for w in workers)
        )
    assert_same_line(results[position : position + 1], f"port {port}", "in use")
    # The other one is told, or finds nobody.
    assert_same_line(results, workers[0].describe(position))


def test_strangers_at_the_port_are_ignored():
    chief, other = members(2)
    host, _, port = chief.addresses[0].rpartition(":")

    def knock():
        for content in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            while True:
                try:
                    link = socket.create_connection((host, int(port)))
                    break
                except OSError:
                    time.sleep(0.05)
            link.sendall(content)
            link.close()
        return rendezvous.meet(other, FACTS, 5)

    results = in_threads(lambda: rendezvous.meet(chief, FACTS, 5), knock)
    assert all(isinstance(result, dict) for result in results), results
    close(results)


def test_another_program_at_the_port_of_the_chief_is_not_the_chief():
    """An older run of the same ports: TensorFlow's server answers something else."""
    port, own = free_ports(2)
    cluster = local_cluster(2, 1, [port, own])
    with socket.create_server(("127.0.0.1", port)) as server:

        def answer():
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                link.sendall(b"\0\0\x06\x04\0\0\0\0\0HTTP/2 settings frame")
                link.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="does not answer"):
            rendezvous.meet(cluster, FACTS, 1)
