"""Global alignment: pairwise pointmaps into one world, all at once (``align``) or keyframe by keyframe."""

from dust3r_ros.alignment.batch import align, align_components
from dust3r_ros.alignment.incremental import AlignmentUpdate, IncrementalAligner
from dust3r_ros.alignment.initialise import pair_similarity
from dust3r_ros.alignment.intrinsics import ImageIntrinsics, intrinsics_of_image

__all__ = [
    "AlignmentUpdate",
    "ImageIntrinsics",
    "IncrementalAligner",
    "align",
    "align_components",
    "intrinsics_of_image",
    "pair_similarity",
]
