"""The benchmarks' harness: rounds in turn, and worker processes."""

import sys
import textwrap

import pytest
from bench import harness


def task_with_times(name, seconds, calls):
    """Returns a task that appends its name to `calls` and reports the next time."""
    times = iter(seconds)

    def task():
        calls.append(name)
        return {"wall": next(times), "cpu": 1.0}

    return task


def test_tasks_are_measured_in_turn_and_the_warm_up_round_does_not_count():
    calls: list = []
    tasks = {
        "a": task_with_times("a", [9, 2, 4], calls),
        "b": task_with_times("b", [9, 1, 1], calls),
    }
    timings = harness.measure_rounds(tasks, 2)
    assert calls == ["a", "b"] * 3
    assert harness.ratios(timings["a"], timings["b"]) == [2, 4]
    assert harness.ratios(timings["a"], timings["b"], "cpu") == [1, 1]


def command(tmp_path, body):
    path = tmp_path / "worker.py"
    head = "import os, time\nfrom bench import harness\n"
    path.write_text(head + textwrap.dedent(body))
    return [sys.executable, "-S", str(path)]  # no installed packages


def test_a_worker_runs_its_task_when_called_whatever_it_prints(tmp_path):
    program = command(
        tmp_path,
        """
        def prepare():
            os.system("echo output of a library")
            count = [0]
            def task():
                print("more output")
                count[0] += 1
                time.sleep(0.02)
                return {"count": count[0], "variable": os.environ["VARIABLE"]}
            return task, {"parameters": 7}
        harness.serve(prepare)
        """,
    )
    with harness.Worker(program, {"VARIABLE": "yes"}) as worker:
        assert worker.ready() == {"parameters": 7}
        first, second = worker(), worker()
    assert (first["count"], second["count"], first["variable"]) == (1, 2, "yes")
    assert first["wall"] >= 0.02 > first["cpu"]


def test_a_task_may_report_its_own_time():
    assert harness.time_call(lambda: {"wall": 5.0})["wall"] == 5.0


def test_a_worker_that_ends_raises_an_error_with_its_last_output(tmp_path):
    program = command(tmp_path, "raise SystemExit('no memory left')")
    with harness.Worker(program) as worker:
        with pytest.raises(RuntimeError, match="ended with 1: no memory left"):
            worker.ready()


def test_a_worker_that_ends_during_its_task_raises_the_same_error(tmp_path):
    program = command(
        tmp_path,
        """
        def task():
            raise SystemExit("no memory left")
        harness.serve(lambda: (task, {}))
        """,
    )
    with harness.Worker(program) as worker:
        worker.ready()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="ended with 1: no memory left"):
                worker()


def test_workers_end_when_one_of_them_fails_to_start(tmp_path):
    ended = []

    class Fake:
        def __init__(self, fails):
            self.fails = fails

        def ready(self):
            if self.fails:
                raise RuntimeError("no memory left")
            return {}

        def __exit__(self, *error):
            ended.append(self.fails)

    with pytest.raises(RuntimeError, match="no memory left"):
        with harness.workers({"a": Fake(False), "b": Fake(True)}):
            pass
    assert ended == [False, True]


def test_a_real_step_in_a_worker():
    from bench import step

    case = step.CASES["tiny"][0]
    tasks = {"step": harness.tensorflow_worker("step", **case)}
    with harness.workers(tasks) as reported:
        timings = harness.measure_rounds(tasks, 2)["step"]
    assert reported["step"]["parameters"] > 10_000
    assert all(timing["wall"] > 0 and timing["cpu"] > 0 for timing in timings)
