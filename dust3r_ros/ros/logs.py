"""Messages of the package's Python loggers, on the node's ROS logger (console, file and /rosout)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.impl.logging_severity import LoggingSeverity
from rclpy.impl.rcutils_logger import RcutilsLogger


class RosLogHandler(logging.Handler):
    """Hands records on to a node's logger."""

    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # One line a severity: rclpy refuses to log from one place with changing severities.
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)


@contextmanager
def forwarded_logs(logger: RcutilsLogger) -> Iterator[None]:
    """While in this block, the package's log messages go to a node's logger.

    Those of level INFO and above; all where the logger shows DEBUG.
    """
    package = logging.getLogger("dust3r_ros")
    handler = RosLogHandler(logger)
    before = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG if logger.is_enabled_for(LoggingSeverity.DEBUG) else logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)
