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

    ``points_*`` (B, H, W, 3) in camera i's frame, ``valid_*`` (B, H, W) bool. A pair with no valid point gives 1.
    """
    distance = torch.cat([points_i.norm(dim=-1).flatten(1), points_j.norm(dim=-1).flatten(1)], dim=1)
    valid = torch.cat([valid_i.flatten(1), valid_j.flatten(1)], dim=1)
    count = valid.sum(dim=1)
    mean = torch.where(valid, distance, 0.0).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, mean.clamp(min=1e-8), 1.0)


def pointmap_loss(
    points: tuple[Tensor, Tensor],
    confidence: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    alpha: float = 0.2,
) -> PointmapLoss:
    """Confidence-weighted, scale-normalised regression of both views' pointmaps (DUSt3R, equations 2 to 4).

    ``points`` and ``target``: for views i and j, (B, H, W, 3) in camera i's frame; ``confidence`` (B, H, W), > 0;
    ``valid`` (B, H, W) bool. Each pair's prediction and target are divided by their own mean distance, so the loss
    does not change with the scale of either. ``alpha`` rewards confidence: ``C * error - alpha * log C``.
    """
    scale = normalisation_scale(*points, *valid)[:, None, None, None]
    target_scale = normalisation_scale(*target, *valid)[:, None, None, None]
    total = regression = points[0].new_zeros(())
    count = (valid[0].sum() + valid[1].sum()).clamp(min=1)
    for predicted, conf, true, use in zip(points, confidence, target, valid, strict=True):
        error = (predicted / scale - true / target_scale).norm(dim=-1)
        total = total + torch.where(use, conf * error - alpha * conf.log(), 0.0).sum() / count
        regression = regression + torch.where(use, error, 0.0).sum().detach() / count
    return PointmapLoss(total, regression)


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
    if not (match >= 0).any():
        return logits.sum() * 0.0
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), match.flatten(), ignore_index=-1)
