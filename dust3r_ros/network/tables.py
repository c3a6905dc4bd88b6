"""What depends on an image's grid of tokens alone is computed once for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Table = TypeVar("Table")
_MOST_TABLES = 64


class TableCache(Generic[Table]):
    """The tables of the (rows, columns) grids seen so far, on each device, kept outside of the network's state dict."""

    def __init__(self, make: Callable[[tuple[int, int], torch.device], Table]) -> None:
        self._make = make
        self._tables: dict[tuple[tuple[int, int], torch.device], Table] = {}

    def get(self, grid: tuple[int, int], device: torch.device) -> Table:
        """The table of a grid on a device."""
        key = (grid, device)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            with torch.inference_mode(False), torch.no_grad():  # usable in training, whoever asked first
                table = self._make(grid, device)
            self._tables[key] = table
        return table
