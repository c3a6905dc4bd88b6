"""Predictions of many pairs in bounded memory: the first in memory, the rest in a temporary file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from dust3r_ros.data import FloatArray, PairPrediction, PairState
from dust3r_ros.errors import ExportError

_ARRAYS = ("points_i", "conf_i", "points_j", "conf_j")


class PredictionStore:
    """Takes predictions in; gives back ones that behave the same, whose arrays may be read from disk on each use.

    At most ``memory_bytes`` of arrays stay in memory. The file is in the system's folder for temporary files (TMPDIR)
    and goes when the last prediction in it does.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._left = memory_bytes
        self._file: _Scratch | None = None
        self._end = 0

    def keep(self, predictions: Iterable[PairPrediction]) -> list[PairPrediction]:
        """The same predictions, kept. Raises ExportError when the disk is full."""
        kept = []
        for prediction in predictions:
            size = sum(getattr(prediction, name).nbytes for name in _ARRAYS)
            if size <= self._left:
                self._left -= size
                kept.append(prediction)
            else:
                kept.append(self._stored(prediction))
        return kept

    @property
    def stored_bytes(self) -> int:
        """How much is on disk."""
        return self._end

    def _stored(self, prediction: PairPrediction) -> PairPrediction:
        places = {}
        try:
            if self._file is None:
                self._file = _Scratch()
            for name in _ARRAYS:
                array = np.ascontiguousarray(getattr(prediction, name), dtype=np.float32)
                places[name] = (self._end, array.shape)
                if array.size:
                    self._file.append(array.data.cast("B"))
                self._end += array.nbytes
        except OSError as error:
            where, why = tempfile.gettempdir(), error.strerror or error
            raise ExportError(f"cannot keep predictions in {where}: {why}; TMPDIR chooses another folder") from error
        return _StoredPrediction(self._file, places, prediction.state)


class _Scratch:
    """A temporary file without a name, closed and gone with the last one that refers to it."""

    def __init__(self) -> None:
        self.number, name = tempfile.mkstemp(prefix="dust3r_ros-")
        weakref.finalize(self, os.close, self.number)
        os.unlink(name)  # noqa: PTH108

    def append(self, data: memoryview) -> None:
        while len(data):
            data = data[os.write(self.number, data) :]


class _StoredPrediction(PairPrediction):
    """A prediction whose arrays are read whenever they are asked for."""

    def __init__(self, file: _Scratch, places: dict[str, tuple[int, tuple[int, ...]]], state: PairState) -> None:
        for name, value in (("_file", file), ("_places", places), ("state", state)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Called for what is no attribute of the instance: the arrays."""
        if name not in _ARRAYS:
            raise AttributeError(name)
        offset, shape = self._places[name]
        array: FloatArray = np.empty(shape, np.float32)
        if array.size:
            os.preadv(self._file.number, [array.data.cast("B")], offset)
        return array
