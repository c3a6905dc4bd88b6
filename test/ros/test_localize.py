"""What a request to localize says of its camera, without a map."""

from __future__ import annotations

import pytest
from camera import raw
from layers import HEIGHT, WIDTH, layered_view
from sensor_msgs.msg import CameraInfo

from dust3r_ros.errors import RosError
from dust3r_ros.ros.localize import query_of
from dust3r_ros.srv import Localize


@pytest.mark.parametrize("size", [(0, 0), (WIDTH, 0), (0, HEIGHT)])
@pytest.mark.parametrize("matrix", ["k", "p"])
def test_a_camera_info_without_its_size_is_refused_and_not_passed_over(matrix, size):
    values = [50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1.0] if matrix == "k" else [50.0, 0, 31.5, 0] * 3
    info = CameraInfo(width=size[0], height=size[1], **{matrix: values})
    request = Localize.Request(image=raw("rgb8", layered_view(0.0)), camera_info=info)
    with pytest.raises(RosError, match=f"camera_info must be for the {WIDTH}x{HEIGHT} image, got {size[0]}x{size[1]}"):
        query_of(request, rectified=False)
