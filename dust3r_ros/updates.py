"""Views and updates when the world around them changes: by a loop closure, or into metres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dust3r_ros.data import Update, ViewEstimate
from dust3r_ros.geometry import Similarity


def changed_view(view: ViewEstimate, change: Similarity) -> ViewEstimate:
    """A view in the world that ``change`` makes of its own."""
    pose = change.apply_to_pose(view.camera_to_world)
    return replace(view, camera_to_world=pose, depth=view.depth * np.float32(change.scale))


def corrected(update: Update, changes: Mapping[int, Similarity]) -> Update:
    """The update of a keyframe after a loop closure changed the world around keyframes."""
    if not changes:
        return update
    same = Similarity.identity()
    index = update.keyframe.index
    return replace(
        update,
        view=changed_view(update.view, changes.get(index, same)),
        moved={v: changed_view(view, changes.get(v, same)) for v, view in update.moved.items()},
        corrections={v: change.matrix() for v, change in changes.items()},
    )


def in_metres(update: Update) -> Update:
    """The update with its views and corrections in metres; as it is while the scale is not known."""
    if not update.metric:
        return update
    larger = Similarity(update.metres_per_unit, np.eye(3), np.zeros(3))
    corrections = {v: change.copy() for v, change in update.corrections.items()}
    for change in corrections.values():
        change[:3, 3] *= update.metres_per_unit
    return replace(
        update,
        view=changed_view(update.view, larger),
        moved={v: changed_view(view, larger) for v, view in update.moved.items()},
        corrections=corrections,
    )
