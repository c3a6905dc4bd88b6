# A robot with an NVIDIA GPU: docker build -t dust3r_ros .
# docker run --rm --gpus all --network host --ipc host dust3r_ros image_topic:=/camera/image_raw
# The container needs the host's driver and the NVIDIA container toolkit; PyTorch brings CUDA itself.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}
ARG ROS_DISTRO
SHELL ["/bin/bash", "-c"]
ENV PIP_BREAK_SYSTEM_PACKAGES=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /ws
# Dependencies first: they are rebuilt only when package.xml changes.
COPY package.xml src/dust3r_ros/package.xml
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip \
    && rosdep update --rosdistro ${ROS_DISTRO} \
    && rosdep install --from-paths src --ignore-src --rosdistro ${ROS_DISTRO} -y \
    && pip install --no-cache-dir safetensors rosbags-image \
    && rm -rf /var/lib/apt/lists/*

COPY . src/dust3r_ros
RUN source /opt/ros/${ROS_DISTRO}/setup.bash && colcon build --packages-select dust3r_ros

# Raw images need more shared memory than Fast DDS takes by itself; the name of the variable depends on the distribution.
ENV FASTDDS_DEFAULT_PROFILES_FILE=/ws/install/dust3r_ros/share/dust3r_ros/config/fastdds.xml \
    FASTRTPS_DEFAULT_PROFILES_FILE=/ws/install/dust3r_ros/share/dust3r_ros/config/fastdds.xml
RUN printf '#!/bin/bash\nset -e\nsource /opt/ros/%s/setup.bash\nsource /ws/install/setup.bash\nexec ros2 launch dust3r_ros dust3r.launch.py "$@"\n' \
    "${ROS_DISTRO}" > /entrypoint.sh && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
