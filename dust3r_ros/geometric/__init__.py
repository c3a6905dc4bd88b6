"""The classical pair predictor: features, essential matrix, epipolar stereo, optical flow, triangulation."""

from dust3r_ros.geometric.predictor import GeometricPredictor, GeometricView

__all__ = ["GeometricPredictor", "GeometricView"]
