"""The DUSt3R network in PyTorch, its checkpoints, and the pair predictor made of it."""

from dust3r_ros.network.architecture import ModelSource, NetworkConfig
from dust3r_ros.network.compiled import CompiledNetwork, prepared_network
from dust3r_ros.network.inference import for_inference
from dust3r_ros.network.model import Dust3rNetwork, Pointmaps, count_parameters
from dust3r_ros.network.predictor import EncodedImage, NetworkPredictor
from dust3r_ros.network.weights import load_model, save_model

__all__ = [
    "CompiledNetwork",
    "Dust3rNetwork",
    "EncodedImage",
    "ModelSource",
    "NetworkConfig",
    "NetworkPredictor",
    "Pointmaps",
    "count_parameters",
    "for_inference",
    "load_model",
    "prepared_network",
    "save_model",
]
