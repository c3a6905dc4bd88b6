"""Recordings of every kind, whole and damaged, written here with known content. No ROS needed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

from dust3r_ros.errors import RecordingError
from dust3r_ros.ros.bag import open_recording
from dust3r_ros.ros.excerpt import Excerpt
from dust3r_ros.ros.lens import lens_of

STORE = get_typestore(Stores.ROS2_JAZZY)
STORE1 = get_typestore(Stores.ROS1_NOETIC)
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
COUNT = 5
KINDS = ("sqlite3", "mcap", "ros1")


def colour(number: int) -> tuple[int, int, int]:
    return (10 + 40 * number, 100, 200 - 40 * number)


class Messages:
    """Messages of one typestore."""

    def __init__(self, store, ros1: bool) -> None:
        self.types, self.ros1 = store.types, ros1

    def header(self, stamp_ns: int, frame: str):
        time = self.types["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
        extra = {"seq": 0} if self.ros1 else {}
        return self.types["std_msgs/msg/Header"](stamp=time, frame_id=frame, **extra)

    def image(self, number: int, stamp_ns: int, **changes):
        pixels = np.full((24, 32, 3), colour(number), np.uint8)
        fields = {"height": 24, "width": 32, "encoding": "rgb8", "is_bigendian": 0, "step": 96}
        fields = {**fields, "data": pixels.reshape(-1), **changes}
        return self.types["sensor_msgs/msg/Image"](header=self.header(stamp_ns, "optical"), **fields)

    def compressed(self, number: int, stamp_ns: int):
        _, data = cv2.imencode(".png", np.full((24, 32, 3), colour(number)[::-1], np.uint8))
        return self.types["sensor_msgs/msg/CompressedImage"](self.header(stamp_ns, "optical"), "png", data.reshape(-1))

    def info(self, stamp_ns: int, focal: float, distortion: float = 0.0):
        names = ("d", "k", "r", "p") if not self.ros1 else ("D", "K", "R", "P")
        k = np.array([focal, 0, 15.5, 0, focal, 11.5, 0, 0, 1.0])
        arrays = dict(zip(names, (np.array([distortion, 0, 0, 0, 0]), k, np.eye(3).ravel(), np.zeros(12))))
        roi = self.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        return self.types["sensor_msgs/msg/CameraInfo"](
            header=self.header(stamp_ns, "optical"), height=24, width=32, distortion_model="plumb_bob",
            binning_x=0, binning_y=0, roi=roi, **arrays,
        )  # fmt: skip

    def pose(self, number: int, stamp_ns: int):
        point = self.types["geometry_msgs/msg/Point"](float(number), 0.0, 0.0)
        half = np.sqrt(0.5)
        quaternion = self.types["geometry_msgs/msg/Quaternion"](0.0, half, 0.0, half)
        pose = self.types["geometry_msgs/msg/Pose"](point, quaternion)
        return self.types["geometry_msgs/msg/PoseStamped"](self.header(stamp_ns, "map"), pose)


def write_bag(folder: Path, kind: str, topics: tuple[str, ...] = ("/cam/image_raw",), *, changes=None,
              distortion: float = 0.0) -> Path:  # fmt: skip
    """A bag in which frame k is of ``colour(k)`` and the true camera stands at (k, 0, 0), turned by 90 degrees."""
    ros1 = kind == "ros1"
    store, make = (STORE1, Messages(STORE1, True)) if ros1 else (STORE, Messages(STORE, False))
    path = folder / ("a.bag" if ros1 else "a")
    writer = Writer1(path) if ros1 else Writer2(path, version=9, storage_plugin=StoragePlugin[kind.upper()])
    serialize = store.serialize_ros1 if ros1 else store.serialize_cdr
    with writer:

        def connect(topic: str, msgtype: str):
            return writer.add_connection(topic, msgtype, typestore=store)

        images = [
            (t, connect(t, f"sensor_msgs/msg/{'CompressedImage' if t.endswith('compressed') else 'Image'}"))
            for t in topics
        ]
        info = connect("/cam/camera_info", "sensor_msgs/msg/CameraInfo")
        truth = connect("/ground_truth/pose", "geometry_msgs/msg/PoseStamped")
        for number in range(COUNT):
            stamp = START_NS + number * PERIOD_NS
            for topic, connection in images:
                message = make.compressed(number, stamp) if topic.endswith("compressed") else make.image(
                    number, stamp, **((changes or {}).get(number, {}))
                )  # fmt: skip
                writer.write(connection, stamp + 7, serialize(message, connection.msgtype))
            writer.write(info, stamp + 8, serialize(make.info(stamp, 30.0 + number, distortion), info.msgtype))
            writer.write(truth, stamp + 9, serialize(make.pose(number, stamp), truth.msgtype))
    return path


@pytest.mark.parametrize("topic", ["/cam/image_raw", "/cam/image_raw/compressed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bag_gives_the_same_frames(tmp_path, kind, topic):
    with open_recording(write_bag(tmp_path, kind, (topic,))) as recording:
        frames = list(recording.frames())
    assert [frame.stamp_ns for frame in frames] == [START_NS + k * PERIOD_NS for k in range(COUNT)]
    for number, frame in enumerate(frames):
        assert (frame.topic, frame.frame_id, frame.image.shape) == (topic, "optical", (24, 32, 3))
        np.testing.assert_array_equal(frame.image, np.broadcast_to(colour(number), (24, 32, 3)))
        assert (frame.intrinsics.cx, frame.intrinsics.cy) == (16, 12)
        assert frame.intrinsics.fx == 30 + max(number - 1, 0)  # the newest that came before; the first looks ahead


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("excerpt", "numbers"),
    [
        (Excerpt(every=2), [0, 2, 4]),
        (Excerpt(start_s=0.2), [2, 3, 4]),
        (Excerpt(duration_s=0.15), [0, 1]),
        (Excerpt(start_s=0.05, duration_s=0.3), [1, 2, 3]),
        (Excerpt(2, 0.1, 0.35), [1, 3]),
        (Excerpt(start_s=5.0), []),
    ],
    ids=str,
)
def test_a_part_of_a_recording_is_read(tmp_path, kind, excerpt, numbers):
    with open_recording(write_bag(tmp_path, kind)) as recording:
        frames = list(recording.frames("/cam/image_raw", excerpt))
        whole = len(list(recording.frames("/cam/image_raw")))
    assert [(frame.stamp_ns - START_NS) // PERIOD_NS for frame in frames] == numbers
    assert all(frame.intrinsics is not None for frame in frames)
    assert whole == COUNT


def test_a_part_says_about_how_many_images_it_has():
    assert Excerpt().images(100, 10.0) == 100
    assert Excerpt(every=3).images(100, 10.0) == 34
    assert Excerpt(start_s=8.0, duration_s=5.0).images(100, 10.0) == 20
    assert Excerpt(start_s=12.0).images(100, 10.0) == 0
    assert Excerpt(every=2).images(1, 0.0) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0,), "every must be at least 1, got 0"),
        ((1, -1.0), "start must be at least 0 seconds, got -1"),
        ((1, float("nan")), "start must be at least 0"),
        ((1, 0.0, 0.0), "duration must be more than 0 seconds, got 0"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(values, said):
    with pytest.raises(RecordingError, match=said):
        Excerpt(*values)


@pytest.mark.parametrize("kind", KINDS)
def test_true_poses_are_found_by_their_name(tmp_path, kind):
    with open_recording(write_bag(tmp_path, kind)) as recording:
        poses = recording.poses()
        assert recording.duration_s == pytest.approx(0.4, abs=1e-3)
        with pytest.raises(RecordingError, match="has no topic '/cam/image_raw' with poses"):
            recording.poses("/cam/image_raw")
    assert [pose.stamp_ns for pose in poses] == [START_NS + k * PERIOD_NS for k in range(COUNT)]
    expected = np.array([[0, 0, 1, 3], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(poses[3].pose, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_raw_messages_are_what_ros_2_sends(tmp_path, kind):
    with open_recording(write_bag(tmp_path, kind)) as recording:
        got = list(recording.raw_messages({"/cam/image_raw", "/ground_truth/pose"}))
    assert [m.topic.name for m in got[:2]] == ["/cam/image_raw", "/ground_truth/pose"]
    assert len(got) == 2 * COUNT
    image = STORE.deserialize_cdr(got[0].cdr, "sensor_msgs/msg/Image")
    assert (image.header.frame_id, image.encoding, image.data.size) == ("optical", "rgb8", 24 * 32 * 3)
    assert got[0].log_ns == START_NS + 7


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_a_single_file_and_a_folder_without_metadata_are_read(tmp_path, suffix):
    folder = write_bag(tmp_path, "mcap" if suffix == ".mcap" else "sqlite3")
    (folder / "metadata.yaml").unlink()
    for path in (folder, next(folder.glob(f"*{suffix}"))):
        with open_recording(path) as recording:
            assert len(list(recording.frames())) == COUNT


def test_the_image_topic_is_named_when_there_are_several(tmp_path):
    with open_recording(write_bag(tmp_path, "mcap", ("/left/image", "/right/image"))) as recording:
        with pytest.raises(RecordingError, match=r"several image topics, name one of: /left/image \(5\), /right/image"):
            next(recording.frames())
        assert next(recording.frames("/right/image")).topic == "/right/image"
        with pytest.raises(RecordingError, match=r"no image topic '/up'; its image topics are: /left/image \(5\)"):
            next(recording.frames("/up"))


def test_raw_is_taken_before_its_compressed_copy_and_depth_is_no_image(tmp_path):
    topics = ("/cam/image_raw", "/cam/image_raw/compressed", "/cam/depth/image_raw")
    with open_recording(write_bag(tmp_path, "mcap", topics)) as recording:
        assert recording.choose_image_topic().name == "/cam/image_raw"


def test_images_that_cannot_be_decoded_are_counted_and_left_out(tmp_path, caplog):
    bad = {1: {"encoding": "32FC4"}, 3: {"height": 1000}}
    with open_recording(write_bag(tmp_path, "mcap", changes=bad)) as recording:
        assert len(list(recording.frames())) == COUNT - 2
        assert recording.skipped == 2
    assert "image encoding '32FC4' is not supported" in caplog.text
    assert "needs 96000 bytes, got 2304" in caplog.text


def test_intrinsics_of_another_size_are_not_used(tmp_path):
    small = {"height": 12, "data": np.zeros(12 * 96, np.uint8)}
    with open_recording(write_bag(tmp_path, "mcap", changes=dict.fromkeys(range(COUNT), small))) as recording:
        assert all(frame.intrinsics is None for frame in recording.frames())


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95, 0.999])
def test_an_mcap_that_was_not_closed_is_read_up_to_the_break(tmp_path, kept):
    folder = write_bag(tmp_path, "mcap")
    (folder / "metadata.yaml").unlink()
    file = next(folder.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    frames = []
    with pytest.raises(RecordingError, match="was not closed by its recorder"):  # noqa: SIM117
        with open_recording(folder) as recording:
            for frame in recording.frames():
                frames.append(frame)
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image[0, 0], colour(number))
    assert len(frames) == (COUNT if kept > 0.9 else len(frames))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_one_clear_error_and_never_a_crash(tmp_path, kind):
    path = write_bag(tmp_path, kind)
    file = path if path.is_file() else next(f for f in path.iterdir() if f.suffix != ".yaml")
    whole = bytearray(file.read_bytes())
    rng = np.random.default_rng(0)
    read, refused = 0, 0
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(0, len(whole))]
        else:
            start = int(rng.integers(0, len(whole) - 64))
            damaged[start : start + 64] = rng.integers(0, 256, 64, dtype=np.uint8).tobytes()
        file.write_bytes(damaged)
        try:
            with open_recording(path) as recording:
                recording.poses()
                read += len(list(recording.frames()))
        except RecordingError as error:
            refused += 1
            assert str(tmp_path) in str(error)
            assert "\n" not in str(error)
    assert refused > 5
    assert read > 5


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing", None, "no such recording"),
        ("empty.mcap", b"", "cannot be read"),
        ("empty.db3", b"", "cannot be read|has no image topic"),
        ("empty.bag", b"", "cannot be read"),
        ("text.bag", b"not a bag\n", "cannot be read"),
        ("notes.txt", b"hello", "is not a recording: expected"),
    ],
)
def test_what_is_no_bag_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError, match=said), open_recording(tmp_path / name) as recording:
        next(recording.frames())


def test_folders_that_hold_no_bag_are_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"has no metadata\.yaml, \.mcap"):
        open_recording(tmp_path)
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information: {}")
    with pytest.raises(RecordingError, match=r"has a metadata\.yaml and no \.mcap"):
        open_recording(tmp_path)


def test_the_real_recording(shared):
    with open_recording(shared / "data" / "bag_sevenscenes_redkitchen") as recording:
        frames = recording.frames()
        first = next(frames)
        rest = sum(1 for _ in frames)
        poses = recording.poses()
    assert first.image.shape == (480, 640, 3)
    assert first.intrinsics.fx == 525
    assert (1 + rest, len(poses)) == (200, 200)
    assert poses[0].stamp_ns == first.stamp_ns


@pytest.mark.parametrize("kind", KINDS)
def test_lens_distortion_is_undone(tmp_path, kind):
    pattern = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    with open_recording(
        write_bag(tmp_path, kind, changes={0: {"data": pattern.reshape(-1)}}, distortion=-0.2)
    ) as recording:
        first, second, *_ = recording.frames()
    lens = lens_of(Messages(STORE, False).info(0, 30.0, -0.2), rectified=False)
    assert first.intrinsics == second.intrinsics == lens.intrinsics
    np.testing.assert_array_equal(first.image, lens.undistorted(pattern))
    assert (first.image != pattern).any()
