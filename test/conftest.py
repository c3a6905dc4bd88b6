"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run, and no time limit an overloaded machine would miss.
settings.register_profile("dust3r_ros", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dust3r_ros")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden outputs and real sequences; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("DUST3R_ROS_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no test data in {folder}; set DUST3R_ROS_TEST_DATA to its folder")
    return folder
