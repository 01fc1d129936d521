"""The workers of a run and their addresses, from the variable `TF_CONFIG`.

`TF_CONFIG` is TensorFlow's own format. Vertex AI and Kubeflow set it; a batch file for
Slurm or a job file for Kubernetes sets it in a few lines (docs/distributed.md).
"""

import dataclasses
import json
import os
from collections.abc import Mapping

from tfsimclr.errors import UserError

EXAMPLE = (
    '{"cluster": {"worker": ["host-a:12345", "host-b:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_TASKS = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run; the first one is the chief.

    Attributes:
        names: Type and index of each worker as in `TF_CONFIG`, such as "worker 1".
        addresses: `host:port` of each worker.
        position: Position of this process in both.
    """

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    position: int

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief, which writes the run folder."""
        return self.position == 0

    def describe(self, position: int) -> str:
        """Returns name and address of a worker, for messages."""
        chief = ", the chief" if position == 0 and self.names[0] != "chief 0" else ""
        return f"{self.names[position]} ({self.addresses[position]}{chief})"


def from_environment(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Returns the cluster that `TF_CONFIG` describes.

    Returns:
        None without `TF_CONFIG`, or if it names no cluster or a single worker: that
        is a run on one machine.

    Raises:
        UserError: If `TF_CONFIG` is malformed, or has tasks that are no workers.
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _malformed(f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _malformed(f"it is a {type(content).__name__}, not an object")
    cluster = content.get("cluster") or {}
    if not isinstance(cluster, dict):
        raise _malformed(f'"cluster" is {cluster!r}, not an object')
    if not cluster:
        return None
    names, addresses = _workers(cluster)
    position = names.index(_own_name(content.get("task"), cluster))
    if len(names) == 1:
        return None
    return Cluster(tuple(names), tuple(addresses), position)


def _workers(cluster: dict) -> tuple[list[str], list[str]]:
    """Returns the names and addresses of all workers, in TensorFlow's order."""
    for task in cluster:
        if task not in _TASKS:
            raise UserError(
                f"TF_CONFIG has tasks of the type {task!r}, and tfsimclr has only "
                f"{' and '.join(_TASKS)}. Leave out parameter servers and evaluators; "
                'older services call the chief "master".'
            )
    names: list[str] = []
    addresses: list[str] = []
    for task in _TASKS:
        of_task = cluster.get(task, [])
        if not isinstance(of_task, list):
            raise _malformed(f"the addresses of {task!r} are {of_task!r}, not a list")
        for index, address in enumerate(of_task):
            _check_address(f"{task} {index}", address)
            if address in addresses:
                other = names[addresses.index(address)]
                raise UserError(
                    f"TF_CONFIG gives {other} and {task} {index} the same address, "
                    f"{address}. Every worker needs a host or a port of its own."
                )
            names.append(f"{task} {index}")
            addresses.append(address)
    if len(cluster.get("chief", [])) > 1:
        raise UserError(
            f"TF_CONFIG has {len(cluster['chief'])} chiefs. There is one at most; make "
            'the others tasks of the type "worker".'
        )
    if not names:
        raise _malformed('"cluster" names no worker')
    return names, addresses


def _check_address(name: str, address) -> None:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("",) * 3
    valid = host and "/" not in host and port.isascii() and port.isdecimal()
    if not valid or not 0 < int(port) < 65536:
        raise _malformed(
            f"the address of {name} is {address!r}, not host:port with a port below "
            "65536"
        )


def _own_name(task, cluster: dict) -> str:
    """Returns type and index of this process."""
    if not isinstance(task, dict) or not {"type", "index"} <= task.keys():
        raise _malformed('"task" does not say type and index of this worker')
    kind, index = task["type"], task["index"]
    if kind not in cluster:
        raise UserError(
            f"TF_CONFIG says that this worker is a {kind!r}, and its cluster has only "
            f"{' and '.join(map(repr, cluster))}. Correct the type of the task."
        )
    count = len(cluster[kind])
    if isinstance(index, str) and index.isascii() and index.isdecimal():
        index = int(index)  # shell scripts quote it
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise UserError(
            f"TF_CONFIG says that this is {kind} {index!r}, and its cluster has "
            f"{count} of this type: expected an index from 0 to {count - 1}. Start as "
            "many workers as there are addresses, each with its own index."
        )
    return f"{kind} {index}"


def _malformed(problem: str) -> UserError:
    return UserError(f"TF_CONFIG is malformed: {problem}. Expected, e.g.: {EXAMPLE}")
