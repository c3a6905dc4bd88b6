"""A web page that shows a map while it grows, and after."""

from dust3r_ros.viewer.page import Viewer
from dust3r_ros.viewer.run_panel import RunPanel, RunSettings, Upload
from dust3r_ros.viewer.scene import ViewedKeyframe, ViewedScene

__all__ = ["RunPanel", "RunSettings", "Upload", "ViewedKeyframe", "ViewedScene", "Viewer"]
