"""The real node, in which a named part fails when told: DUST3R_TEST_FAULTS holds names, separated by commas.

predictor:N   the predictor raises at its N-th call, from 1 on: the one for keyframe N + 1
memory:N      the device is out of memory whenever N pairs or more are to be predicted at once
slow:S        each prediction takes S seconds longer
"""

from __future__ import annotations

import os
import sys
import time

import dust3r_ros.pipeline as pipeline
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.geometric import GeometricPredictor
from dust3r_ros.ros.node import main

FAULTS = dict(fault.split(":") for fault in os.environ.get("DUST3R_TEST_FAULTS", "").split(",") if fault)


class FaultyPredictor(GeometricPredictor):
    """Predicts well, but for the faults."""

    calls = 0

    def predict(self, pairs):
        self.calls += 1
        if str(self.calls) == FAULTS.get("predictor"):
            raise ArithmeticError("a fault of the test")
        if "memory" in FAULTS and len(pairs) >= int(FAULTS["memory"]):
            raise DeviceMemoryError(f"the test's device has no memory for {len(pairs)} pairs")
        time.sleep(float(FAULTS.get("slow", 0)))
        return super().predict(pairs)


if __name__ == "__main__":
    pipeline.load_predictor = lambda config: FaultyPredictor()
    sys.exit(main())
