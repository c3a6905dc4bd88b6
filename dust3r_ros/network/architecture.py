"""What a DUSt3R network is made of: its configuration, and the two published notations of it.

The publisher writes the architecture as keywords: as a constructor call in text inside a ``.pth`` file, or as the
``config.json`` beside a ``model.safetensors``. Both are parsed here, never evaluated; what is not known is refused
by name.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dust3r_ros.errors import CheckpointError
from dust3r_ros.predictor import ImageSize

CONSTRUCTOR = "AsymmetricCroCo3DStereo"
_LONGEST_CONSTRUCTOR = 4096  # characters; the published ones have about 400
_LARGEST_SQUARE = 224  # published models up to this size were trained on square crops, larger ones on all aspects
_PLACES = "+places"  # after the base in ``pos_embed``
_LIMITS = {  # far above every published model: a hostile file cannot ask for a network that fills the memory
    "enc_dim": 4096, "enc_depth": 64, "enc_heads": 64, "dec_dim": 4096, "dec_depth": 64, "dec_heads": 64,
    "dpt_dim": 1024, "patch": 64,
}  # fmt: skip


@dataclass(frozen=True)
class NetworkConfig:
    """The architecture of one network; the defaults are the published ViT-Large 512 DPT.

    ``img_size`` is (height, width) in pixels of the training images, ``square`` whether they were square crops.
    ``head`` is ``linear`` or ``dpt``; ``dpt_dim`` the feature dimension of the DPT head (Ranftl et al. 2021).
    ``depth_mode`` and ``conf_mode`` are (curve, minimum, maximum). ``places`` adds absolute positions to the tokens
    (``PlaceEmbed``) and measures relative ones by the image (``span``), which no published network does. Raises
    ValueError for what cannot be built.
    """

    img_size: tuple[int, int] = (512, 512)
    square: bool = False
    patch: int = 16
    enc_dim: int = 1024
    enc_depth: int = 24
    enc_heads: int = 16
    dec_dim: int = 768
    dec_depth: int = 12
    dec_heads: int = 12
    head: str = "dpt"
    dpt_dim: int = 256
    depth_mode: tuple[str, float, float] = ("exp", -math.inf, math.inf)
    conf_mode: tuple[str, float, float] = ("exp", 1.0, math.inf)
    rope_base: float = 100.0
    places: bool = False
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            _require(_is_int(value) and 1 <= value <= limit, name, f"an integer from 1 to {limit}", value)
        for part in ("enc", "dec"):
            width, heads = getattr(self, f"{part}_dim"), getattr(self, f"{part}_heads")
            _require(width % (4 * heads) == 0, f"{part}_dim", f"a multiple of 4 x {heads} heads", width)
        sides_fit = len(self.img_size) == 2 and all(_is_int(s) and 0 < s <= 8192 for s in self.img_size)
        _require(sides_fit, "img_size", "two sides in pixels, each from 1 to 8192", self.img_size)
        _require(self.head in ("linear", "dpt"), "head", "linear or dpt", self.head)
        if self.head == "dpt":
            _require(self.patch == 16, "patch", "16 for a DPT head", self.patch)
            _require(self.dec_depth >= 2, "dec_depth", "at least 2 for a DPT head", self.dec_depth)
            _require(self.dpt_dim % 8 == 0, "dpt_dim", "a multiple of 8", self.dpt_dim)
        _require(self.depth_mode == ("exp", -math.inf, math.inf), "depth_mode", "('exp', -inf, inf)", self.depth_mode)
        conf_fits = self.conf_mode[0] == "exp" and 0 <= self.conf_mode[1] < self.conf_mode[2]
        _require(conf_fits, "conf_mode", "('exp', minimum >= 0, maximum)", self.conf_mode)
        _require(1 < self.rope_base < math.inf, "rope_base", "above 1", self.rope_base)
        _require(0 < self.mlp_ratio <= 16, "mlp_ratio", "above 0, at most 16", self.mlp_ratio)

    @property
    def span(self) -> int | None:
        """How far rotary positions run along the longer side of any image; None where they count tokens."""
        return max(self.img_size) // self.patch if self.places else None

    @property
    def image_size(self) -> ImageSize:
        """The form of image this network was trained on."""
        return ImageSize(max(self.img_size), self.patch, square=self.square)


@dataclass(frozen=True)
class ModelSource:
    """Where a network's weights come from, as a user is told it."""

    name: str = "dust3r"
    trained: bool = False
    licence: str = "none stated"


def config_from_constructor(text: str) -> NetworkConfig:
    """The configuration a published ``.pth`` file names, e.g. ``AsymmetricCroCo3DStereo(enc_depth=24, ...)``.

    Raises CheckpointError for another class, unknown keywords, or anything but a call with constant keywords.
    """
    if len(text) > _LONGEST_CONSTRUCTOR:
        raise CheckpointError(f"the architecture's text must be at most {_LONGEST_CONSTRUCTOR} characters long")
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"the architecture's text is not a constructor call: {text[:80]!r}") from error
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise CheckpointError(f"the architecture's text must be a constructor call, got {text[:80]!r}")
    if call.func.id != CONSTRUCTOR:
        raise CheckpointError(f"unknown architecture {call.func.id!r}, expected {CONSTRUCTOR!r}")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise CheckpointError(f"the arguments of {CONSTRUCTOR} must all be keywords, got {text[:80]!r}")
    return config_from_keywords({str(k.arg): _constant(str(k.arg), k.value) for k in call.keywords})


def config_from_keywords(keywords: Mapping[str, Any]) -> NetworkConfig:
    """The configuration of a published ``config.json``. Raises CheckpointError naming what is unknown or wrong."""
    unknown = sorted(set(keywords) - _KEYWORDS.keys() - _FIXED.keys())
    if unknown:
        raise CheckpointError(f"unknown architecture option {', '.join(map(repr, unknown[:5]))}")
    missing = [name for name in _REQUIRED if name not in keywords]
    if missing:
        raise CheckpointError(f"the architecture lacks {', '.join(missing)}")
    for name, allowed in _FIXED.items():
        if name in keywords and not any(_same(keywords[name], value) for value in allowed):
            expected = " or ".join(map(repr, allowed))
            raise CheckpointError(f"{name}={keywords[name]!r} is not supported, expected {expected}")
    try:
        values = {field: _FIELD[field](keywords[name]) for name, field in _KEYWORDS.items() if name in keywords}
        values.setdefault("square", max(values["img_size"]) <= _LARGEST_SQUARE)
        values["places"] = keywords["pos_embed"].endswith(_PLACES)
        return NetworkConfig(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"unsupported architecture: {error}") from error


def keywords_from_config(config: NetworkConfig) -> dict[str, Any]:
    """The published keywords of a configuration, ready for ``config.json``."""
    values: dict[str, Any] = {name: getattr(config, field) for name, field in _KEYWORDS.items()}
    values["pos_embed"] = f"RoPE{config.rope_base:g}" + (_PLACES if config.places else "")
    values["output_mode"] = "pts3d"
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _rope_base(value: Any) -> float:
    match = re.fullmatch(rf"RoPE([^+]+)({re.escape(_PLACES)})?", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"pos_embed must be 'RoPE' and its base, then perhaps {_PLACES!r}, got {value!r}")
    return float(match[1])


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if _is_int(value) else value
    return height, width


def _mode(value: Any) -> tuple[str, float, float]:
    curve, low, high = value
    return str(curve), float(low), float(high)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"square_images must be true or false, got {value!r}")
    return value


_KEYWORDS = {
    "img_size": "img_size", "square_images": "square", "patch_size": "patch", "enc_embed_dim": "enc_dim",
    "enc_depth": "enc_depth", "enc_num_heads": "enc_heads", "dec_embed_dim": "dec_dim", "dec_depth": "dec_depth",
    "dec_num_heads": "dec_heads", "head_type": "head", "dpt_dim": "dpt_dim", "depth_mode": "depth_mode",
    "conf_mode": "conf_mode", "pos_embed": "rope_base", "mlp_ratio": "mlp_ratio",
}  # fmt: skip
_REQUIRED = ("img_size", "pos_embed", "head_type", "enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim",
             "dec_depth", "dec_num_heads")  # fmt: skip
_FIELD: dict[str, Any] = {field: (lambda value: value) for field in _KEYWORDS.values()}
_FIELD.update(img_size=_pair, square=_bool, depth_mode=_mode, conf_mode=_mode, rope_base=_rope_base, mlp_ratio=float)
_FIXED: dict[str, tuple[Any, ...]] = {  # options with one meaning at inference: these values change nothing
    "output_mode": ("pts3d",),
    "norm_im2_in_dec": (True,),
    "patch_embed_cls": ("PatchEmbedDust3R", "ManyAR_PatchEmbed"),
    "landscape_only": (True, False),
    "freeze": ("none", "mask", "encoder"),
}


def _same(value: Any, allowed: Any) -> bool:
    return type(value) is type(allowed) and value == allowed


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, name: str, expected: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _constant(name: str, node: ast.expr) -> Any:
    """A constant of the constructor's text: number, string, bool, None, ``inf``, or tuples of these."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(name, node.operand)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_constant(name, element) for element in node.elts)
    raise CheckpointError(f"{name} in the architecture's text must be a constant, got a {type(node).__name__}")
