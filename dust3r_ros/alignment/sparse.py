"""Sparse symmetric normal equations, damped and factorised."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import SuperLU, splu

from dust3r_ros.data import FloatArray

KEEP = 1e-9  # of the typical information: what nothing observes stays where it is


def typical_information(diagonal: FloatArray) -> float:
    """The median of what is observed at all, 1 when nothing is."""
    return float(np.median(diagonal[diagonal > 0])) if (diagonal > 0).any() else 1.0


def damping_diagonal(diagonal: FloatArray, damping: float) -> FloatArray:
    """What Levenberg and Marquardt add to the diagonal, and ``KEEP``."""
    return damping * diagonal + KEEP * typical_information(diagonal)


def with_diagonal(normal: scipy.sparse.csc_matrix, extra: FloatArray) -> scipy.sparse.csc_matrix:
    """``normal`` (M, M) with ``extra`` (M,) added to its diagonal."""
    return normal + scipy.sparse.diags(extra, format="csc")


def factorise(normal: scipy.sparse.csc_matrix) -> SuperLU:
    """Of a symmetric positive matrix."""
    return splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
