"""Reading checkpoint files: the publisher's ``.pth``, and ``model.safetensors`` with its ``config.json``.

Files may come from anywhere. Nothing in them is executed: ``.pth`` is read with ``weights_only``, the architecture's
text is parsed, and whatever is not exactly of a known form ends in one CheckpointError.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dust3r_ros.errors import CheckpointError
from dust3r_ros.network.architecture import (
    ModelSource,
    NetworkConfig,
    config_from_constructor,
    config_from_keywords,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
OWN_SECTION = "dust3r_ros"  # of config.json: what this package adds to the published form
PUBLISHED_LICENCE = "CC BY-NC-SA 4.0 (Naver; research, non-commercial use only)"
_FORMS = f"a .pth file, a .safetensors file with {CONFIG_FILE} beside it, or a folder with one of these"
_LARGEST_CONFIG = 1 << 20  # bytes
_UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError,
               AssertionError, OSError, ImportError, MemoryError, OverflowError)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file's content: architecture, weights by name, and what the file says of its origin."""

    config: NetworkConfig
    weights: Mapping[str, Tensor]
    source: ModelSource


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at a file or folder. Raises CheckpointError naming the file and what is wrong with it."""
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}, expected {_FORMS}")
    try:
        if path.stat().st_size == 0:
            raise CheckpointError("the file is empty")
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _file_in(folder: Path) -> Path:
    if (folder / WEIGHTS_FILE).is_file():
        return folder / WEIGHTS_FILE
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pth")])
    if len(found) != 1:
        listed = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(f"{folder}: expected one checkpoint in this folder, found {listed}")
    return found[0]


def _read_safetensors(path: Path) -> Checkpoint:
    keywords = _read_config(path.with_name(CONFIG_FILE))
    source = _source(keywords.pop(OWN_SECTION, None), path)
    config = config_from_keywords(keywords)
    try:
        weights = load_file(path)
    except (SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise CheckpointError(f"not a whole safetensors file ({_first_line(error)})") from error
    return Checkpoint(config, weights, source)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"lacks {path.name} beside it, which names the architecture")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise CheckpointError(f"{path.name} beside it is larger than {_LARGEST_CONFIG} bytes")
    try:
        keywords = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} beside it is not JSON ({_first_line(error)})") from error
    if not isinstance(keywords, dict):
        raise CheckpointError(f"{path.name} beside it must hold an object, got a {type(keywords).__name__}")
    return keywords


def _source(own: Any, path: Path) -> ModelSource:
    """What this package wrote of the weights' origin; without it the file is of the published form."""
    if own is None:
        generic = path.name == WEIGHTS_FILE
        return ModelSource(path.parent.name if generic else path.stem, trained=True, licence=PUBLISHED_LICENCE)
    match own:
        case {"name": str(name), "trained": bool(trained), "licence": str(licence), **rest} if not rest:
            return ModelSource(name, trained, licence)
    raise CheckpointError(f"{OWN_SECTION} in {CONFIG_FILE} must hold name, trained and licence, got {own!r}")


def _read_pth(path: Path) -> Checkpoint:
    content = _load_pth(path)
    if not (isinstance(content, dict) and isinstance(content.get("model"), dict) and "args" in content):
        held = ", ".join(map(repr, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"not a DUSt3R checkpoint: expected a dict with 'model' and 'args', got {held}")
    constructor = getattr(content["args"], "model", None)
    if not isinstance(constructor, str):
        raise CheckpointError("'args.model' must be the architecture's text")
    weights = content["model"]
    strays = [name for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strays:
        raise CheckpointError(f"'model' must map names to tensors, but {strays[0]!r} is none")
    return Checkpoint(config_from_constructor(constructor), weights, _source(None, path))


def _load_pth(path: Path) -> Any:
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    if safe_globals is None:
        raise CheckpointError(f"reading .pth safely needs PyTorch 2.5 or newer, this is {torch.__version__}")
    _check_archive(path)
    try:
        with safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        raise CheckpointError(_why_refused(error)) from error


def _why_refused(error: BaseException) -> str:
    """PyTorch's page of text about ``weights_only``, which even advises against it, in one line."""
    if held := re.search(r"GLOBAL:? `?([\w.]+)", str(error)):
        return f"refused: it holds {held[1]}, and a checkpoint may hold only tensors and plain values"
    if detail := re.search(r"WeightsUnpickler error: ([^\n]*)", str(error)):
        return f"refused: it does not hold only tensors and plain values: {detail[1].strip()[:160] or 'damaged'}"
    return f"not a whole PyTorch checkpoint ({_first_line(error)})"


def _check_archive(path: Path) -> None:
    """A checkpoint is a zip archive whose members match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
            damaged = None if compressed else archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        with path.open("rb") as file:
            bare_pickle = file.read(1) == b"\x80"
        if bare_pickle:
            raise CheckpointError("refused: a bare pickle, which could run code; expected torch.save's zip") from error
        raise CheckpointError(f"not a whole PyTorch checkpoint ({_first_line(error)})") from error
    if compressed:
        raise CheckpointError("not a PyTorch checkpoint: a compressed archive")
    if damaged is not None:
        raise CheckpointError(f"damaged: {damaged} in it does not match its checksum")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__
