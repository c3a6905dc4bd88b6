"""Global alignment: pairwise pointmaps into one world, all at once (``align``) or keyframe by keyframe."""

from dust3r_ros.alignment.batch import align, align_components
from dust3r_ros.alignment.incremental import AlignmentUpdate, IncrementalAligner

__all__ = ["AlignmentUpdate", "IncrementalAligner", "align", "align_components"]
