"""The files of a recording: found, opened, and what goes wrong with them turned into words."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
import struct
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag1 import ReaderError as Rosbag1Error
from rosbags.rosbag2 import ReaderError as Rosbag2Error
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_typestore

from dust3r_ros.errors import RecordingError
from dust3r_ros.ros.salvage import UnfinishedMcap, is_unfinished_mcap


def _library_errors() -> tuple[type[Exception], ...]:
    """The errors of the libraries that rosbags stores with, where they are installed."""
    names = (("apsw", "Error"), ("backports.zstd", "ZstdError"), ("compression.zstd", "ZstdError"))
    found = []
    for module, name in names:
        with contextlib.suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


# What rosbags lets through on damaged files, beside errors of its own.
DAMAGE: tuple[type[Exception], ...] = (
    AnyReaderError, Rosbag1Error, Rosbag2Error, SerdeError, TypesysError, sqlite3.Error, *_library_errors(),
    struct.error, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError,
    MemoryError, OverflowError,
)  # fmt: skip


def open_storage(path: Path) -> AnyReader:
    """An open reader of a rosbag2 folder or file or a ROS 1 bag. Raises RecordingError."""
    files = _storage_files(path)
    sources: list[Any] = [UnfinishedMcap(file) if is_unfinished_mcap(file) else file for file in files]
    whole = not any(isinstance(source, UnfinishedMcap) for source in sources)
    if path.is_dir() and (path / "metadata.yaml").is_file() and whole:
        sources = [path]
    typestore = get_typestore(Stores.LATEST)
    try:
        reader = AnyReader(sources, default_typestore=typestore)
        reader.open()
    except DAMAGE as error:
        raise RecordingError(f"{path} cannot be read: {reason(error)}") from error
    if not whole and not reader.connections:
        reader.close()
        raise RecordingError(f"{path} was not closed by its recorder, and holds no whole part that could be read")
    return reader


def _storage_files(path: Path) -> list[Path]:
    if not path.exists():
        raise RecordingError(f"{path}: no such recording")
    if not path.is_dir():
        if path.suffix not in (".bag", ".mcap", ".db3"):
            raise RecordingError(f"{path} is not a recording: expected a rosbag2 folder, .mcap, .db3 or ROS 1 .bag")
        return [path]
    files = sorted([*path.glob("*.mcap"), *path.glob("*.db3"), *path.glob("*.mcap.zstd"), *path.glob("*.db3.zstd")])
    if not files and (path / "metadata.yaml").is_file():
        raise RecordingError(f"{path} has a metadata.yaml and no .mcap or .db3 file")
    if not files:
        bags = sorted(path.glob("*.bag"))
        if len(bags) == 1:
            return [bags[0]]
        raise RecordingError(f"{path} is not a recording: it has no metadata.yaml, .mcap, .db3 or single .bag file")
    return files


def reason(error: BaseException) -> str:
    """One line on what a storage library said."""
    text = " ".join(str(error).split())
    return text.rstrip(".") if isinstance(error, AnyReaderError | Rosbag1Error | Rosbag2Error) else (
        f"{type(error).__name__} {text}".strip()
    )  # fmt: skip
