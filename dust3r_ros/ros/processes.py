"""Child processes that are told to stop and never left behind."""

from __future__ import annotations

import ctypes
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from dust3r_ros.errors import RosError

log = logging.getLogger(__name__)

_QUOTED_LINES = 3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Child:
    """A Python module run as a process of its own; a context manager at whose end the process is gone.

    ``start`` it inside the block, so that no interrupt can come between. Its output goes to ``log_file``. Leaving the
    block interrupts it (SIGINT), and kills it when it does not end within ``patience_s``. On Linux it is interrupted,
    too, when this process is killed; that holds for the thread that started it.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log_file: Path,
        environment: Mapping[str, str],
        patience_s: float = 5.0,
    ) -> None:
        self.name = module.rsplit(".", 1)[-1]
        self.log_file = log_file
        self.killed = False  # by this object, because it did not end when it was interrupted
        self._patience_s = patience_s
        self._command = [sys.executable, "-u", "-m", __name__, str(os.getpid()), module, *arguments]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def start(self) -> Child:
        """Start it; returns itself. Interrupts wait until the process is known."""
        with self.log_file.open("wb") as output, _interrupts_deferred():
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self._interrupt()

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int:
        """By which the system knows it."""
        return self._started().pid

    def check_running(self) -> None:
        """Raises RosError, with the end of its output, when the process has ended."""
        if not self.running:
            raise RosError(f"{self.name} ended by itself with exit code {self._code()}{self._last_words()}")

    def check_finished(self) -> None:
        """Raises RosError, with the end of its output, unless the process ended well."""
        if self.running or self._code() != 0:
            state = "still runs" if self.running else f"failed with exit code {self._code()}"
            raise RosError(f"{self.name} {state}{self._last_words()}")

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended by itself. Raises RosError when it takes longer, or ends badly."""
        try:
            self._started().wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RosError(f"{self.name} did not end within {timeout_s:g} s{self._last_words()}") from error
        self.check_finished()

    def ended(self) -> int:
        """Wait for as long as it takes; the exit code, or the negative number of the signal that ended it."""
        return self._started().wait()

    def stop(self) -> None:
        """Interrupt it, as Ctrl-C does, and wait. Raises RosError unless it ends in time and well."""
        self.check_running()
        if not self._interrupt():
            raise RosError(f"{self.name} did not stop within {self._patience_s:g} s of SIGINT and was killed")
        self.check_finished()

    def _interrupt(self) -> bool:
        process = self._started()
        try:
            process.send_signal(signal.SIGINT)
            process.wait(self._patience_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop within %g s: killed", self.name, self._patience_s)
            return False
        finally:
            if process.poll() is None:  # also when we are interrupted while waiting
                self.killed = True
                process.kill()
                process.wait()
        return True

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    def _code(self) -> int | None:
        return self._started().poll()

    def _last_words(self) -> str:
        lines = self.log_file.read_text(errors="replace").strip().splitlines()[-_QUOTED_LINES:]
        return f" (see {self.log_file}): {' | '.join(line.strip() for line in lines)}" if lines else ""


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """While in this block SIGTERM raises KeyboardInterrupt, so that children are stopped on the way out."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, signal.SIGTERM):
        yield


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """SIGINT and SIGTERM that come while in this block raise KeyboardInterrupt at its end."""
    came: list[int] = []
    with _handled(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Another signal handler while in this block; only the main thread has any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def private_environment() -> dict[str, str]:
    """The environment for children that find each other and disturb nobody else.

    Without a ROS_DOMAIN_ID of the user's it gets one of its own, and stays on this machine.
    """
    environment = dict(os.environ)
    environment.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return environment


def main(argv: Sequence[str] | None = None) -> int:
    """What a child runs: PARENT MODULE ARGUMENTS... becomes the module, interrupted when the parent dies."""
    parent, module, *arguments = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script inherits that it is ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before that
        return 1
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # while it was still importing
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
