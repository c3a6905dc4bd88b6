"""Live dense 3D reconstruction from any camera with DUSt3R, for ROS 2 and for plain Python.

The package is split in two by design: everything outside ``dust3r_ros.ros`` runs with no ROS installed.
"""

import logging
from pkgutil import extend_path

# In a colcon install the generated messages (dust3r_ros.msg, dust3r_ros.srv) and these sources
# may lie in different folders; both are one package.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
