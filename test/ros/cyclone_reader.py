"""A subscriber of another DDS vendor, Cyclone DDS, with nothing of ROS: what it decodes goes to a file, then it ends.
It makes a file OUT.npz.ready when it has found the node's publishers.

python cyclone_reader.py NAMESPACE TRANSFORMS OUT.npz

Topics and types have the names that every ROS 2 middleware gives them: rt/NAME, and package::msg::dds_::Type_.
"""

# The library reads the annotations themselves: they must not be strings.
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.annotations import final
from cyclonedds.idl.types import array, float64, int32, sequence, uint8, uint32
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

PATIENCE_S = 120.0
# Fast DDS (vendor 1.15) describes its types in a way that Cyclone DDS refuses; the types' names are enough.
CONFIG = """<CycloneDDS><Domain>
<General><AllowMulticast>false</AllowMulticast>
<Interfaces><NetworkInterface address="127.0.0.1"/></Interfaces></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>100</MaxAutoParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers></Discovery>
<Compatibility><IgnoreTypeInformation>1.15</IgnoreTypeInformation></Compatibility>
</Domain></CycloneDDS>"""


@final
@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@final
@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@final
@dataclass
class PointField(IdlStruct, typename="sensor_msgs::msg::dds_::PointField_"):
    name: str
    offset: uint32
    datatype: uint8
    count: uint32


@final
@dataclass
class PointCloud2(IdlStruct, typename="sensor_msgs::msg::dds_::PointCloud2_"):
    header: Header
    height: uint32
    width: uint32
    fields: sequence[PointField]
    is_bigendian: bool
    point_step: uint32
    row_step: uint32
    data: sequence[uint8]
    is_dense: bool


@final
@dataclass
class RegionOfInterest(IdlStruct, typename="sensor_msgs::msg::dds_::RegionOfInterest_"):
    x_offset: uint32
    y_offset: uint32
    height: uint32
    width: uint32
    do_rectify: bool


@final
@dataclass
class CameraInfo(IdlStruct, typename="sensor_msgs::msg::dds_::CameraInfo_"):
    header: Header
    height: uint32
    width: uint32
    distortion_model: str
    d: sequence[float64]
    k: array[float64, 9]
    r: array[float64, 9]
    p: array[float64, 12]
    binning_x: uint32
    binning_y: uint32
    roi: RegionOfInterest


@final
@dataclass
class Vector3(IdlStruct, typename="geometry_msgs::msg::dds_::Vector3_"):
    x: float64
    y: float64
    z: float64


@final
@dataclass
class Quaternion(IdlStruct, typename="geometry_msgs::msg::dds_::Quaternion_"):
    x: float64
    y: float64
    z: float64
    w: float64


@final
@dataclass
class Transform(IdlStruct, typename="geometry_msgs::msg::dds_::Transform_"):
    translation: Vector3
    rotation: Quaternion


@final
@dataclass
class TransformStamped(IdlStruct, typename="geometry_msgs::msg::dds_::TransformStamped_"):
    header: Header
    child_frame_id: str
    transform: Transform


@final
@dataclass
class TFMessage(IdlStruct, typename="tf2_msgs::msg::dds_::TFMessage_"):
    transforms: sequence[TransformStamped]


def qos(depth: int, *, latched: bool) -> Qos:
    return Qos(
        Policy.Reliability.Reliable(duration(seconds=1)),
        Policy.Durability.TransientLocal if latched else Policy.Durability.Volatile,
        Policy.History.KeepLast(depth),
        Policy.DataRepresentation(use_cdrv0_representation=True),
    )


def stamp_ns(header: Header) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def main() -> int:
    namespace, wanted, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    ready = Path(f"{out}.ready")
    number = int(os.environ["ROS_DOMAIN_ID"])
    domain = Domain(number, CONFIG)
    participant = DomainParticipant(number)

    def reader(kind: type, name: str, asked: Qos) -> Any:
        return DataReader(participant, Topic(participant, f"rt{namespace}/{name}", kind, qos=asked), qos=asked)

    maps = reader(PointCloud2, "dust3r/map", qos(1, latched=True))
    infos = reader(CameraInfo, "dust3r/camera_info", qos(1, latched=True))
    transforms = reader(TFMessage, "tf", qos(100, latched=False))
    clouds, seen, heard = [], [], []
    deadline = time.monotonic() + PATIENCE_S
    while True:
        if not ready.exists() and all(r.get_matched_publications() for r in (maps, infos, transforms)):
            ready.touch()
        clouds += maps.take(N=10)
        seen += infos.take(N=10)
        heard += [sent for message in transforms.take(N=100) for sent in message.transforms]
        newest = max((stamp_ns(sent.header) for sent in heard), default=0)
        if len(heard) >= wanted and clouds and seen and stamp_ns(clouds[-1].header) == newest:
            break
        if time.monotonic() > deadline:
            sys.exit(f"only {len(clouds)} clouds, {len(seen)} CameraInfo, {len(heard)} transforms came")
        time.sleep(0.05)
    cloud, info = clouds[-1], seen[-1]
    np.savez(
        out,
        stamps=[stamp_ns(sent.header) for sent in heard],
        places=[[getattr(sent.transform.translation, axis) for axis in "xyz"] for sent in heard],
        turns=[[getattr(sent.transform.rotation, axis) for axis in "xyzw"] for sent in heard],
        frames=[[sent.header.frame_id, sent.child_frame_id] for sent in heard],
        fields=[field.name for field in cloud.fields],
        cloud_frame=cloud.header.frame_id,
        points=np.frombuffer(bytes(cloud.data), "<f4").reshape(-1, cloud.point_step // 4),
        k=np.array(info.k),
        size=[info.width, info.height],
    )
    del domain
    return 0


if __name__ == "__main__":
    sys.exit(main())
