"""Everything that speaks ROS. Only modules in this package may import rclpy or message packages."""
