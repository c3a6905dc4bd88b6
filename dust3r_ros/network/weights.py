"""From a name to a network ready to run, and from a network to files."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dust3r_ros.errors import CheckpointError, ConfigError, ExportError
from dust3r_ros.files import replacing
from dust3r_ros.network.architecture import ModelSource, keywords_from_config
from dust3r_ros.network.checkpoint import (
    CONFIG_FILE,
    OWN_SECTION,
    PUBLISHED_LICENCE,
    WEIGHTS_FILE,
    Checkpoint,
    read_checkpoint,
)
from dust3r_ros.network.hub import PUBLISHED, fetch, repository_of
from dust3r_ros.network.model import Dust3rNetwork

log = logging.getLogger(__name__)

TINY = "tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = (*DTYPES.values(), torch.float64)  # kinds of weights a file may hold
_FIRST = 5  # names listed of each kind in an error


def load_model(name: str | Path, device: str = "auto", dtype: str = "auto") -> Dust3rNetwork:
    """A network in eval mode with the weights ``name`` means, on ``device``, its blocks in ``dtype``.

    ``name`` is ``tiny`` (shipped with the package), the path of a ``.pth`` or ``.safetensors`` file or of a folder
    with one, a hub repository such as ``naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt``, or its short name ``512_dpt``.
    ``device`` is ``auto`` (CUDA when there is one) or a PyTorch device. ``dtype`` is ``float32``, ``bfloat16``,
    ``float16``, or ``auto``: float16 on CUDA, several times as accurate as bfloat16, unless the
    weights overflow in it; bfloat16 on a CPU with matrix units for it (AMX); float32 elsewhere.

    Raises CheckpointError for weights that are missing, damaged or of another architecture, ConfigError for a
    device or dtype that cannot be used.
    """
    place = resolve_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    path = locate(name)
    checkpoint = read_checkpoint(path)
    try:
        model = build(checkpoint, place)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if path != Path(name).expanduser() and path.parent.name == "snapshots":  # the hub's folder is named by its commit
        model.source = replace(model.source, name=repository_of(str(name)) or model.source.name)
    _announce_licence(model.source.licence)
    if dtype != "auto":
        return model.set_dtype(DTYPES[dtype])
    return choose_dtype(model)


def locate(name: str | Path) -> Path:
    """The file or folder a model's name means; a hub model is downloaded when it is not in the local cache."""
    if str(name) == TINY:
        folder = Path(str(resources.files("dust3r_ros.network"))) / "data" / TINY
        if not (folder / WEIGHTS_FILE).is_file():
            raise CheckpointError(f"this installation has no {TINY!r} model: {folder / WEIGHTS_FILE} does not exist")
        return folder
    path = Path(name).expanduser()
    if path.exists():
        return path
    repository = None if isinstance(name, Path) or path.suffix in (".pth", ".safetensors") else repository_of(name)
    if repository is None:
        known = ", ".join([TINY, *PUBLISHED])
        raise CheckpointError(
            f"no model {str(name)!r}: neither a file or folder, nor one of {known}, nor owner/name; "
            f"'geometric' needs no model"
        )
    return fetch(repository)


def resolve_device(name: str) -> torch.device:
    """The PyTorch device of a name; ``auto`` is CUDA when there is one. Raises ConfigError when it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        expected = "auto, cpu, cuda or cuda:N"
        raise ConfigError(f"device {name!r} cannot be used here, expected {expected} ({reason})") from error
    return device


def build(checkpoint: Checkpoint, device: torch.device) -> Dust3rNetwork:
    """A float32 network in eval mode with a checkpoint's weights.

    Raises CheckpointError unless names, shapes and kinds are exactly the architecture's and every weight is finite.
    """
    with torch.device("meta"):
        model = Dust3rNetwork(checkpoint.config, checkpoint.source)
    aliases = _aliases(model)
    weights = _under_known_names(checkpoint.weights, aliases)
    expected = {name: value for name, value in model.state_dict().items() if name in weights or name not in aliases}
    check_weights(weights, expected)
    model.to_empty(device=device)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in expected:
            value = weights[name]
            low, high = torch.aminmax(value)
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise CheckpointError(f"{name} has values that are not finite")
            parameters[name].copy_(value)
    return model.eval()


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError listing the first names that are missing, unexpected, or of another shape or kind."""
    both = [name for name in expected if name in weights]
    shaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in both
        if weights[name].shape != expected[name].shape
    ]
    kinds = [f"{name} {weights[name].dtype}" for name in both if not _is_weight(weights[name])]
    problems = [
        _listed("missing", [name for name in expected if name not in weights]),
        _listed("unexpected", [name for name in weights if name not in expected]),
        _listed("of wrong shape", shaped),
        _listed("not floating point", kinds),
    ]
    if any(problems):
        raise CheckpointError("the weights do not fit the architecture: " + "; ".join(filter(None, problems)))


def save_model(
    model: Dust3rNetwork, folder: str | Path, source: ModelSource | None = None, dtype: str = "float32"
) -> None:
    """Write a network as ``model.safetensors`` and ``config.json``, the form of the hub, into a folder.

    ``source`` (default: the model's) is kept in ``config.json``; ``dtype`` is that of the stored weights. A file
    is replaced only by a whole one.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    folder, source = Path(folder), source or model.source
    aliases = _aliases(model)
    weights = {
        name: value.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, value in model.state_dict().items()
        if name not in aliases
    }
    own = {"name": source.name, "trained": source.trained, "licence": source.licence}
    config = json.dumps({**keywords_from_config(model.config), OWN_SECTION: own}, indent=2) + "\n"
    write_tensors(weights, folder / WEIGHTS_FILE, {"format": "pt"})
    with replacing(folder / CONFIG_FILE) as scratch:
        scratch.write_text(config, encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, on the disk when this returns. Raises ExportError when the system refuses."""
    with replacing(path) as scratch:
        try:
            save_file(dict(tensors), scratch, metadata=dict(metadata))
        except SafetensorError as error:  # a full disk, too
            raise ExportError(f"cannot write {path}: {error}") from error
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())


def _aliases(model: Dust3rNetwork) -> dict[str, str]:
    """The first names of parameters that have two, each with the second, whose value counts."""
    seen: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            aliases[seen[id(parameter)]] = name
        seen[id(parameter)] = name
    return aliases


def _under_known_names(weights: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Parameters with two names under the second, if a file has only the first: ``.pth`` has both, the hub either."""
    renamed = {first: second for first, second in aliases.items() if first in weights and second not in weights}
    return {renamed.get(name, name): value for name, value in weights.items()}


def _is_weight(value: Tensor) -> bool:
    return value.dtype in _STORED and value.layout is torch.strided and value.device.type == "cpu"


def _listed(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return f"{len(names)} {kind} ({', '.join(names[:_FIRST])}{more})" if names else ""


def has_matrix_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 matrices in units of their own (AMX): several times as fast as float32."""
    try:
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    except OSError:  # not Linux
        return False
    return "amx_bf16" in flags.split()


def choose_dtype(model: Dust3rNetwork) -> Dust3rNetwork:
    """A float32 network in the precision that ``auto`` means on its device."""
    if model.device.type == "cpu" and has_matrix_units():
        return model.set_dtype(torch.bfloat16)
    if model.device.type != "cuda" or torch.cuda.get_device_capability(model.device) < (7, 0):
        return model
    model.set_dtype(torch.float16)
    if half_is_safe(model):
        return model
    log.warning("%s overflows in float16, so it runs in bfloat16", model.source.name)
    return model.set_dtype(torch.bfloat16)


@torch.inference_mode()
def half_is_safe(model: Dust3rNetwork) -> bool:
    """Whether the network stays finite in its present dtype, tried on images of noise."""
    side = 4 * model.config.patch
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, side, side, generator=generator).to(model.device) * 2 - 1
    tokens = model.encode(images)
    maps = model.decode(tokens[:1], tokens[1:], (side, side))
    return all(bool(torch.isfinite(m).all()) for m in (maps.points_i, maps.conf_i, maps.points_j, maps.conf_j))


@functools.cache
def _announce_licence(licence: str) -> None:
    """Once a process for each licence."""
    level = logging.WARNING if licence == PUBLISHED_LICENCE else logging.INFO
    log.log(level, "licence of the network's weights: %s", licence)
