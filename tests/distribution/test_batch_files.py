"""The batch file for Slurm and the job for Kubernetes of docs/distributed.md."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from tfsimclr.distribution import cluster as clusters

pytestmark = pytest.mark.quick
PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
# In place of the programs of the cluster.
STUBS = {
    "scontrol": "#!/bin/sh\nprintf 'node1\\nnode2\\nnode10\\nnode11\\n'\n",
    "srun": '#!/bin/sh\nshift\nSLURM_PROCID=2 exec "$@"\n',
    "tfsimclr": '#!/bin/sh\nprintf "%s\\n" "$TF_CONFIG" "$@"\n',
}


def run(script, tmp_path, **variables):
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    config, *flags = done.stdout.splitlines()
    return clusters.from_environment({"TF_CONFIG": config}), flags


def test_slurm(tmp_path):
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.S)
    variables = {"SLURM_JOB_ID": "40123", "SLURM_JOB_NODELIST": "node[1-2,10-11]"}
    cluster, flags = run(script, tmp_path, **variables)
    assert cluster.addresses == (
        *("node1:20123", "node2:20123", "node10:20123", "node11:20123"),
    )
    assert cluster.names[cluster.position] == "worker 2"
    assert "--dataset=folder" in flags and "--workdir=/shared/runs/simclr" in flags


def test_kubernetes(tmp_path):
    (job,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    block = re.search(r"- \|\n((?: {14}.*\n)+)", job)[1]
    script = textwrap.dedent(block)
    cluster, flags = run(script, tmp_path, JOB_COMPLETION_INDEX="3")
    assert cluster.addresses == tuple(f"simclr-{i}.simclr:12345" for i in range(4))
    assert cluster.position == 3
    assert "--workdir=/data/runs/simclr" in flags
    assert re.findall(r"(?:completions|parallelism): (\d+)", job) == ["4", "4"]
