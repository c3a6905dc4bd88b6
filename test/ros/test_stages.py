"""Two workers one behind the other."""

import threading
from concurrent.futures import CancelledError

import pytest

from dust3r_ros.ros.stages import IN_HAND, Stages

PATIENCE_S = 20.0


class Gates:
    """Halves that note their jobs; each waits until it is let through, while its gate is closed."""

    def __init__(self) -> None:
        self.first, self.second = threading.Event(), threading.Event()
        self.began, self.ended, self.failed = [], [], []
        self.changed = threading.Condition()

    def begin(self, job):
        self.note(self.began, job)
        assert self.first.wait(PATIENCE_S)
        if job == "bad":
            raise ValueError(f"{job} cannot begin")
        return None if job == "left out" else f"half a {job}"

    def end(self, job, half):
        assert half == f"half a {job}"
        assert self.second.wait(PATIENCE_S)
        if job == "rotten":
            raise ValueError(f"{job} cannot end")
        self.note(self.ended, job)

    def fail(self, job, error):
        self.note(self.failed, str(error))
        self.note(self.ended, job)

    def note(self, jobs, job):
        with self.changed:
            jobs.append(job)
            self.changed.notify_all()

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S)


@pytest.fixture
def gates():
    made = Gates()
    yield made
    made.first.set()
    made.second.set()


def started(gates, capacity=5):
    stages = Stages(gates.begin, gates.end, capacity, gates.fail)
    stages.start()
    return stages


def test_a_job_begins_while_the_one_before_it_ends_and_one_more_waits_between(gates):
    gates.first.set()
    stages = started(gates, capacity=6)
    for job in "abcdef":
        stages.offer(job)
    gates.wait(lambda: len(gates.began) == IN_HAND)
    assert (gates.began, gates.ended, stages.queue_length) == (["a", "b", "c"], [], 3)
    assert not stages.wait_idle(0.0)
    gates.second.set()
    assert stages.wait_idle(PATIENCE_S)
    assert gates.ended == list("abcdef")
    assert stages.stop(PATIENCE_S)


def test_failures_of_either_half_are_told_in_the_order_of_the_jobs_and_a_job_may_be_left_out(gates):
    stages = started(gates)
    for job in ("good", "bad", "rotten", "left out", "well"):
        stages.offer(job)
    gates.first.set()
    gates.second.set()
    assert stages.wait_idle(PATIENCE_S)
    assert gates.ended == ["good", "bad", "rotten", "well"]
    assert gates.failed == ["bad cannot begin", "rotten cannot end"]
    assert stages.stop(PATIENCE_S)


def test_a_task_goes_between_two_second_halves_while_a_first_half_is_at_work(gates):
    stages = started(gates)
    stages.offer("a")
    gates.wait(lambda: gates.began == ["a"])
    assert stages.call(lambda: list(gates.ended)).result(PATIENCE_S) == []
    gates.first.set()
    gates.second.set()
    assert stages.stop(PATIENCE_S)


def test_a_task_that_must_be_alone_waits_for_both_halves_and_goes_before_what_was_not_begun(gates):
    stages = started(gates)
    stages.offer("a")
    gates.wait(lambda: gates.began == ["a"])
    stages.offer("b")
    alone = stages.call_alone(lambda: (list(gates.began), stages.clear()))
    assert stages.task_count == 1
    gates.first.set()
    assert not alone.done()
    gates.second.set()
    began, cleared = alone.result(PATIENCE_S)
    assert began == ["a"] and cleared >= 1
    assert stages.wait_idle(PATIENCE_S)
    assert "b" not in gates.ended
    assert stages.stop(PATIENCE_S)


def test_stopping_does_not_wait_for_one_half_because_of_the_other(gates):
    gates.first.set()
    stages = started(gates)
    for job in "abcde":
        stages.offer(job)
    gates.wait(lambda: len(gates.began) == IN_HAND)  # the first half waits for room before the second
    alone = stages.call_alone(lambda: None)
    assert not stages.stop(0.2)  # the second half is at work
    with pytest.raises(CancelledError):
        alone.result(PATIENCE_S)
    gates.second.set()
    assert stages.stop(PATIENCE_S)
    assert gates.ended == ["a"]
