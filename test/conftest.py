"""Fixtures shared by all tests."""

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run, and no time limit an overloaded machine would miss.
settings.register_profile("dust3r_ros", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dust3r_ros")

# A shell's background job begins with interrupts ignored, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def level_of_logging() -> Iterator[None]:
    """The command line sets the package's level of logging: for one test only."""
    yield
    logging.getLogger("dust3r_ros").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden outputs and real sequences; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("DUST3R_ROS_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no test data in {folder}; set DUST3R_ROS_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, by playwright; tests that need it are skipped where one of them is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=flags)
        yield opened
        opened.close()
