"""Global alignment: pairwise pointmaps into one world, all at once (``align``) or keyframe by keyframe."""

from dust3r_ros.alignment.batch import align

__all__ = ["align"]
