import json

import pytest

from tfsimclr.distribution import cluster as clusters
from tfsimclr.errors import UserError

pytestmark = pytest.mark.quick


def read(content):
    text = content if isinstance(content, str) else json.dumps(content)
    return clusters.from_environment({"TF_CONFIG": text})


def config(workers=("a:1", "b:2"), task="worker", index=0, **more):
    cluster = {"worker": list(workers), **more}
    return {"cluster": cluster, "task": {"type": task, "index": index}}


def test_workers_and_own_position():
    cluster = read(config(index=1))
    assert cluster.addresses == ("a:1", "b:2")
    assert (cluster.size, cluster.position, cluster.is_chief) == (2, 1, False)
    assert read(config()).is_chief
    assert cluster.describe(0) == "worker 0 (a:1, the chief)"
    assert cluster.describe(1) == "worker 1 (b:2)"


def test_a_chief_comes_before_the_workers_as_in_vertex():
    content = config(["a:1", "[::1]:2"], index="1", chief=["c:3"])
    cluster = read({**content, "environment": "cloud", "job": "{}"})
    assert cluster.names == ("chief 0", "worker 0", "worker 1")
    assert cluster.addresses == ("c:3", "a:1", "[::1]:2")
    assert cluster.position == 2
    assert cluster.describe(0) == "chief 0 (c:3)"


@pytest.mark.parametrize(
    "content", ["", " ", {}, {"cluster": {}}, config(["a:1"]), {"task": {}}]
)
def test_one_machine_is_no_cluster(content):
    assert read(content) is None
    assert clusters.from_environment({}) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "malformed: it is not JSON"),
        ("[]", "it is a list"),
        ({"cluster": ["a:1"]}, "not an object"),
        ({"cluster": {"worker": "a:1"}}, "not a list"),
        ({"cluster": {"worker": []}}, "names no worker"),
        ({"cluster": {"worker": ["a:1"]}}, '"task" does not say'),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}, "index"),
        (config(["a", "b:2"]), "worker 0 is 'a', not host:port"),
        (config(["a:1", "b:"]), "worker 1 is 'b:'"),
        (config(["a:1", ":2"]), "worker 1 is ':2'"),
        (config(["a:1", "b:0"]), "b:0"),
        (config(["a:1", "b:65536"]), "b:65536"),
        (config(["a:1", "b:²"]), "b:²"),
        (config(["a:1", "grpc://b:2"]), "grpc://b:2"),
        (config(["a:1", 7]), "worker 1 is 7"),
        (config(["a:1", "a:1"]), "worker 0 and worker 1 the same address, a:1"),
        (config(chief=["a:1"]), "chief 0 and worker 0 the same address"),
        (config(chief=["c:1", "d:1"]), "2 chiefs"),
        (config(index=2), "index from 0 to 1"),
        (config(index=-1), "index from 0 to 1"),
        (config(index="x"), "index from 0 to 1"),
        (config(index=True), "index from 0 to 1"),
        (config(index=0.0), "index from 0 to 1"),
        (config(task="chief"), "'chief', and its cluster has only 'worker'"),
        (config(ps=["p:1"]), "'ps'.*parameter servers"),
        (config(master=["p:1"]), "'master'"),
        (config(evaluator=["p:1"]), "'evaluator'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content, message):
    with pytest.raises(UserError, match=message) as error:
        read(content)
    assert "TF_CONFIG" in str(error.value) and "\n" not in str(error.value)
