"""Which predictor a configuration names."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.predictor import ImageSize, PairPredictor

log = logging.getLogger(__name__)


def load_predictor(config: ReconstructorConfig) -> PairPredictor[Any]:
    """The pair predictor a configuration names: ``geometric``, or a network's checkpoint.

    Raises CheckpointError for a checkpoint that cannot be loaded.
    """
    if config.checkpoint == "geometric":
        from dust3r_ros.geometric import GeometricPredictor

        if config.device not in ("auto", "cpu"):
            log.warning("geometric runs on the processor (CPU): device %s is not used", config.device)
        return GeometricPredictor()
    from dust3r_ros.network import NetworkPredictor, load_model, prepared_network

    model = load_model(config.checkpoint, device=config.device, dtype=config.dtype)
    return NetworkPredictor(prepared_network(model, config.execution))


def predictor_image_size(config: ReconstructorConfig, predictor: PairPredictor[Any]) -> ImageSize:
    """The predictor's image size, with the long side the configuration asks for."""
    size = predictor.image_size
    return replace(size, long_side=config.image_size) if config.image_size else size
