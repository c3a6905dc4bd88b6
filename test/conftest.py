"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden outputs and real sequences; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("DUST3R_ROS_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no test data in {folder}; set DUST3R_ROS_TEST_DATA to its folder")
    return folder
