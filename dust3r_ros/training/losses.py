"""Objectives of training: pointmap regression with confidence (DUSt3R, section 3.2), cross-view completion (CroCo)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PointmapLoss:
    """``total`` is what is minimised; ``regression`` the mean scale-free point error without confidence."""

    total: Tensor
    regression: Tensor


def normalisation_scale(points_i: Tensor, points_j: Tensor, valid_i: Tensor, valid_j: Tensor) -> Tensor:
    """Mean distance (B,) of both views' valid points from camera i (DUSt3R, equation 3).

    ``points_*`` (B, 3, *pixels) in camera i's frame, ``valid_*`` (B, *pixels) bool. A pair with no valid point gives 1.
    """
    count = valid_i.flatten(1).sum(dim=1) + valid_j.flatten(1).sum(dim=1)
    total = _valid_sum(_length(points_i), valid_i) + _valid_sum(_length(points_j), valid_j)
    return torch.where(count > 0, (total / count.clamp(min=1)).clamp(min=1e-8), 1.0)


def pointmap_loss(
    points: tuple[Tensor, Tensor],
    confidence: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    alpha: float = 0.2,
) -> PointmapLoss:
    """Confidence-weighted, scale-normalised regression of both views' pointmaps (DUSt3R, equations 2 to 4).

    ``points`` and ``target``: for views i and j, (B, 3, *pixels) in camera i's frame; ``confidence`` (B, *pixels), > 0;
    ``valid`` (B, *pixels) bool. Each pair's prediction and target are divided by their own mean distance, so the loss
    does not change with the scale of either. ``alpha`` rewards confidence: ``C * error - alpha * log C``.
    """
    scale, target_scale = (1 / normalisation_scale(*p, *valid) for p in (points, target))
    total = regression = points[0].new_zeros(())
    count = (valid[0].sum() + valid[1].sum()).clamp(min=1)
    for predicted, conf, true, use in zip(points, confidence, target, valid, strict=True):
        each = (-1, *(1,) * (predicted.ndim - 1))
        error = _length(predicted * scale.view(each) - true * target_scale.view(each))
        total = total + torch.where(use, conf * error - alpha * conf.log(), 0.0).sum() / count
        regression = regression + torch.where(use, error, 0.0).sum().detach() / count
    return PointmapLoss(total, regression)


def motion_loss(
    points: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], pose: Tensor
) -> Tensor:
    """How far the second view's points are from where the true motion takes the network's own points of that view.

    As ``pointmap_loss`` has them, of B pairs followed by the same pairs the other way round, with ``pose`` (2 B, 4, 4)
    from the second view's camera to the first's. What the network gets wrong of a surface it gets wrong in both orders,
    so this is the error of the motion alone, which in the regression hides behind that of the depth; the own points
    are taken as they are. An auxiliary objective, for training only.
    """
    scale = normalisation_scale(*target, *valid)
    true = (scale / normalisation_scale(*points, *valid)).view(-1, *(1,) * (points[0].ndim - 1))
    here, own = points[1] * true, torch.cat((points[0] * true).chunk(2)[::-1]).detach()
    moved = (pose[:, :3, :3] @ own.flatten(2) + pose[:, :3, 3:]).view_as(own)
    error = _length(here - moved) / scale.view(-1, *(1,) * (own.ndim - 2))
    return torch.where(valid[1], error, 0.0).sum() / valid[1].sum().clamp(min=1)


def _length(vectors: Tensor) -> Tensor:
    """Lengths (B, ...) of vectors (B, 3, ...), with a gradient at zero too."""
    return vectors.square().sum(dim=1).clamp(min=1e-16).sqrt()


def _valid_sum(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, 0.0).flatten(1).sum(dim=1)


def completion_loss(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over masked patches, each normalised by its own mean and deviation (CroCo, section 3).

    ``predicted`` and ``target`` (B, N, P): N patches of P values; ``masked`` (B, N) bool, at least one True.
    """
    if not masked.any():
        raise ValueError("completion_loss needs at least one masked patch, got none")
    mean = target.mean(dim=-1, keepdim=True)
    deviation = (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    error = (predicted - (target - mean) / deviation).square().mean(dim=-1)
    return error[masked].mean()


def matching_loss(descriptors_i: Tensor, descriptors_j: Tensor, match: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross entropy that picks, for each token of view i, the token of view j that shows the same surface (InfoNCE).

    ``descriptors_*`` (B, N, C), compared by cosine; ``match`` (B, N) long: the index in view j, -1 where there is
    none. An auxiliary objective, for training only. Zero when no token has a match.
    """
    i = torch.nn.functional.normalize(descriptors_i, dim=-1)
    j = torch.nn.functional.normalize(descriptors_j, dim=-1)
    logits = (i @ j.transpose(-1, -2)).float() / temperature
    known = match >= 0
    wrong = logits.logsumexp(dim=-1) - logits.gather(-1, match.clamp(min=0)[..., None])[..., 0]
    return torch.where(known, wrong, 0.0).sum() / known.sum().clamp(min=1)
