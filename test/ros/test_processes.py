import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dust3r_ros.errors import RosError
from dust3r_ros.ros.processes import Child, private_environment, terminated_as_interrupted

MODULES = {
    "waits": "import time\nprint('ready', flush=True)\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass\n",
    "stubborn": "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)\n"
    "time.sleep(60)\n",
    "fails": "import sys\nprint('one')\nprint('why it failed', file=sys.stderr)\nsys.exit(3)\n",
    "ends": "print('done')\n",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def child(name: str, folder: Path, environment: dict[str, str], patience_s: float = 10.0) -> Child:
    return Child(name, [], folder / f"{name}.log", environment, patience_s)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def said_ready(one: Child) -> bool:
    return "ready" in one.log_file.read_text()


def test_a_child_is_interrupted_when_its_block_ends(tmp_path: Path, environment: dict[str, str]) -> None:
    with child("waits", tmp_path, environment) as one:
        one.start()
        wait_for(lambda: said_ready(one))
        one.check_running()
    assert not one.running
    one.check_finished()


def test_an_error_in_the_block_leaves_no_child_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(ZeroDivisionError), child("waits", tmp_path, environment) as one:
        one.start()
        wait_for(lambda: said_ready(one))
        raise ZeroDivisionError
    assert not one.running


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path, environment: dict[str, str]) -> None:
    with child("stubborn", tmp_path, environment, patience_s=0.2) as one:
        one.start()
        wait_for(lambda: said_ready(one))
        with pytest.raises(RosError, match=r"stubborn did not stop within 0.2 s of SIGINT and was killed"):
            one.stop()
    assert not one.running


def test_a_child_that_fails_is_quoted(tmp_path: Path, environment: dict[str, str]) -> None:
    with child("fails", tmp_path, environment) as one:
        one.start()
        wait_for(lambda: not one.running)
        with pytest.raises(RosError, match=r"fails ended by itself with exit code 3 .*: .*why it failed"):
            one.check_running()
        with pytest.raises(RosError, match=r"fails failed with exit code 3 .*fails.log"):
            one.check_finished()


def test_a_child_that_ends_well_is_fine(tmp_path: Path, environment: dict[str, str]) -> None:
    with child("ends", tmp_path, environment) as one:
        one.start()
        wait_for(lambda: not one.running)
        one.check_finished()
        with pytest.raises(RosError, match="ends ended by itself with exit code 0"):
            one.stop()


def test_waiting_for_a_child_has_an_end(tmp_path: Path, environment: dict[str, str]) -> None:
    with child("ends", tmp_path, environment) as one:
        one.start().wait(60.0)
    with child("waits", tmp_path, environment) as one, pytest.raises(RosError, match=r"waits did not end within 0.3 s"):
        one.start().wait(0.3)
    assert not one.running


def test_a_running_child_has_not_finished(tmp_path: Path, environment: dict[str, str]) -> None:
    with child("waits", tmp_path, environment) as one:
        one.start()
        wait_for(lambda: said_ready(one))
        with pytest.raises(RosError, match="waits still runs"):
            one.check_finished()


def test_sigterm_becomes_an_interrupt_and_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_while_a_child_starts_leaves_none_behind(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    popen, started = subprocess.Popen, []

    def interrupted(*arguments: object, **options: object) -> object:
        started.append(popen(*arguments, **options))
        os.kill(os.getpid(), signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), child("waits", tmp_path, environment) as one:
        one.start()
    assert started[0].poll() is not None


PARENT = """
import os, sys
from pathlib import Path
from dust3r_ros.ros.processes import Child
child = Child("waits", [], Path(sys.argv[1]), dict(os.environ)).start()
while "ready" not in child.log_file.read_text():
    pass
print(child._started().pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="parents are watched on Linux only")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "waits.log")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait(60.0)
    wait_for(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    """Whether a process still does anything; one whose new parent does not fetch its code stays as a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_in_another_thread_sigterm_is_left_alone() -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def body() -> None:
        with terminated_as_interrupted():
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert during == [before]


def test_the_environment_is_private_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    assert 1 <= int(private_environment()["ROS_DOMAIN_ID"]) <= 100
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert private_environment()["ROS_DOMAIN_ID"] == "42"
