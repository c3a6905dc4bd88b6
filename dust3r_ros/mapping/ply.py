"""PLY point clouds (Turk, Stanford 1994): written as binary, read in all three forms, in plain NumPy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dust3r_ros.errors import ExportError
from dust3r_ros.mapping.cloud import PointCloud

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_WRITTEN = np.dtype(
    [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")] + [("confidence", "<f4")]
)
_MAX_HEADER_LINES = 200


def ply_bytes(cloud: PointCloud) -> bytes:
    """A whole file: x, y, z (float), red, green, blue (uchar), confidence (float), little endian."""
    rows = np.empty(len(cloud), _WRITTEN)
    for axis, name in enumerate("xyz"):
        rows[name] = cloud.points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = cloud.colours[:, channel]
    rows["confidence"] = cloud.confidence
    names = {"<f4": "float", "|u1": "uchar"}
    properties = "".join(f"property {names[kind[1]]} {kind[0]}\n" for kind in _WRITTEN.descr)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(cloud)}\n{properties}end_header\n"
    return header.encode("ascii") + rows.tobytes()


def parse_ply(file: BinaryIO, path: Path) -> PointCloud:
    """The vertices of an open PLY; grey where it has no colours, confidence 1 where it has none.

    Raises ExportError, naming ``path``, for anything that is not a PLY with x, y, z of its vertices first.
    """
    form, count, kind = _header(file, path)
    body = file.read()
    if count > len(body) or (form != "ascii" and count * kind.itemsize > len(body)):
        raise ExportError(f"cannot read {path}: it says {count} points and holds fewer")
    if form != "ascii":
        return _cloud(np.frombuffer(body, kind, count))
    try:
        table = np.loadtxt(io.BytesIO(body), dtype=kind, max_rows=count, ndmin=1) if count else np.empty(0, kind)
    except ValueError as error:
        raise ExportError(f"cannot read {path}: damaged vertices") from error
    if len(table) != count:
        raise ExportError(f"cannot read {path}: it says {count} points and holds fewer")
    return _cloud(table)


def _header(file: BinaryIO, path: Path) -> tuple[str, int, np.dtype[np.void]]:
    def bad(why: str) -> ExportError:
        return ExportError(f"cannot read {path}: {why}")

    if file.readline(16).strip() != b"ply":
        raise bad("not a PLY file")
    form, count, fields, in_vertex = "", -1, [], False
    for _ in range(_MAX_HEADER_LINES):
        words = file.readline(1024).decode("ascii", errors="replace").split()
        if words == ["end_header"]:
            break
        if len(words) >= 2 and words[0] == "format":
            form = words[1]
        elif len(words) == 3 and words[0] == "element":
            in_vertex = words[1] == "vertex"
            if in_vertex:
                count = int(words[2]) if words[2].isdecimal() else -1
            elif count < 0:
                raise bad("the vertices do not come first")
        elif in_vertex and len(words) == 3 and words[0] == "property" and words[1] in _TYPES:
            fields.append((words[2], _ORDERS.get(form, "=") + _TYPES[words[1]]))
        elif in_vertex and words and words[0] == "property":
            raise bad(f"a vertex property that is not a number: {' '.join(words)}")
    else:
        raise bad("its header does not end")
    if form not in _ORDERS or count < 0 or not {"x", "y", "z"} <= {name for name, _ in fields}:
        raise bad("its header does not describe vertices with x, y and z")
    if len({name for name, _ in fields}) < len(fields):
        raise bad("two properties of one name")
    return form, count, np.dtype(fields)


def _cloud(table: NDArray[np.void]) -> PointCloud:
    names = table.dtype.names or ()
    points = np.stack([table[name].astype(np.float32) for name in "xyz"], axis=1)
    colours = np.full((len(table), 3), 128, np.uint8)
    if {"red", "green", "blue"} <= set(names):
        channels = np.stack([table[name] for name in ("red", "green", "blue")], axis=1)
        if np.issubdtype(channels.dtype, np.floating):  # from 0 to 1
            channels = channels * 255 + 0.5
        colours = channels if channels.dtype == np.uint8 else np.clip(channels, 0, 255).astype(np.uint8)
    confidence = table["confidence"].astype(np.float32) if "confidence" in names else np.ones(len(table), np.float32)
    return PointCloud(points, colours, confidence)
