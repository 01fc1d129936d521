"""Workers of a cluster on this machine, as threads."""

import socket
import threading

from tfsimclr.distribution.cluster import Cluster


def free_ports(count):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def local_cluster(size, position=0, ports=None):
    ports = ports or free_ports(size)
    names = tuple(f"worker {i}" for i in range(size))
    return Cluster(names, tuple(f"127.0.0.1:{p}" for p in ports), position)


def in_threads(*functions):
    """Runs functions at the same time.

    Returns:
        For each what it returns, or the exception that it raises.
    """
    results = [None] * len(functions)

    def call(index):
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [
        threading.Thread(target=call, args=[i], daemon=True)
        for i in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return results
