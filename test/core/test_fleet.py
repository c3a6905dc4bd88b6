"""Many recordings: what is found, what each run does of them, and what is left when one fails or all is stopped."""

import csv
import fcntl
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dust3r_ros.cli import main
from dust3r_ros.cli.options import results_options
from dust3r_ros.errors import FleetError, RosError
from dust3r_ros.fleet.jobs import Job, find_jobs, is_recording
from dust3r_ros.fleet.run import LOG, RECORD, Outcome, Share, State, outcome_of, run_here, run_job
from dust3r_ros.ros.processes import Child

SMALL = ("--checkpoint", "tiny", "--device", "cpu", "--image-size", "64")


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def recordings(tmp_path) -> Path:
    folder = tmp_path / "recordings"
    touch(folder / "monday" / "walk" / "metadata.yaml")
    touch(folder / "monday" / "walk" / "walk_0.mcap")
    touch(folder / "tuesday" / "walk" / "metadata.yaml")
    touch(folder / "tuesday" / "stairs.bag")
    touch(folder / "garden.MP4")
    write_image(folder / "photos" / "1.png")
    write_image(folder / "photos" / "more" / "2.png")
    touch(folder / "notes.txt")
    return folder


def test_everything_in_a_folder_is_found_once_and_named_by_what_tells_it_apart(recordings, tmp_path):
    given = [recordings, recordings / "garden.MP4"]
    jobs = find_jobs(given, tmp_path / "out", options=["--sky"], replay_options=["-v"])
    assert {job.name: job.command for job in jobs} == {
        "garden": "reconstruct", "monday_walk": "replay", "photos": "reconstruct", "stairs": "replay",
        "tuesday_walk": "replay",
    }  # fmt: skip
    by_name = {job.name: job for job in jobs}
    assert by_name["monday_walk"].source == recordings / "monday" / "walk"
    assert by_name["monday_walk"].options == ("--sky", "-v")
    assert by_name["photos"].folder == tmp_path / "out" / "photos"
    assert by_name["photos"].options == ("--sky",)
    assert [is_recording(job.source) for job in jobs] == [job.command == "replay" for job in jobs]


def test_a_path_that_goes_up_again_gives_a_folder_inside(recordings, tmp_path, monkeypatch):
    """Never the folder above, whose content would be thrown away when the job begins again."""
    (job,) = find_jobs([recordings / "photos" / "more" / ".."], tmp_path / "out")
    assert (job.name, job.source, job.folder) == ("photos", recordings / "photos", tmp_path / "out" / "photos")
    monkeypatch.chdir(recordings / "photos" / "more")
    (job,) = find_jobs([Path("..")], tmp_path / "out")
    assert job.folder == tmp_path / "out" / "photos"


def test_results_that_lie_among_the_recordings_are_not_taken_for_some(recordings):
    write_image(recordings / "maps" / "photos" / "images" / "1.png")
    assert len(find_jobs([recordings], recordings / "maps")) == 5


def test_what_is_no_recording_is_refused(recordings, tmp_path):
    with pytest.raises(FleetError, match=r"missing: no such file"):
        find_jobs([tmp_path / "missing"], tmp_path / "out")
    with pytest.raises(FleetError, match=r"notes.txt: neither a recording nor a video nor a folder with images"):
        find_jobs([recordings, recordings / "notes.txt"], tmp_path / "out")
    touch(tmp_path / "a" / "x.bag"), touch(tmp_path / "a" / "x.mcap")
    with pytest.raises(FleetError, match=r"would have one name: .*x.bag, .*x.mcap"):
        find_jobs([tmp_path / "a"], tmp_path / "out")


def test_a_folder_says_how_its_job_stands(tmp_path):
    job = Job("a", tmp_path / "a.bag", tmp_path / "out", "replay", ("--sky",))
    assert outcome_of(job).state is State.NEW
    touch(job.folder / "cameras.json")
    with pytest.raises(FleetError, match="holds something else"):
        outcome_of(job)
    assert outcome_of(job, overwrite=True).state is State.NEW
    record = {"source": str(job.source), "command": "replay", "options": ["--sky"], "error": "", "seconds": 3.5}
    for state in ("running", "failed", "done"):
        (job.folder / RECORD).write_text(json.dumps({**record, "state": state}))
        assert outcome_of(job) == Outcome(job, State(state), "", 3.5, earlier=True)
    with pytest.raises(FleetError, match="other options"):
        outcome_of(Job("a", job.source, job.folder, "replay"))
    with pytest.raises(FleetError, match=r"is of .*a.bag, not of .*b.bag"):
        outcome_of(Job("a", tmp_path / "b.bag", job.folder, "replay"))
    (job.folder / RECORD).write_text("{")
    with pytest.raises(FleetError, match=r"job.json cannot be read"):
        outcome_of(job)


def test_as_many_run_at_once_as_there_are_cores_or_gpus():
    assert Share(4).places(10) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert len(Share(4).places(2)) == 1
    assert Share(4, gpu=True).places(10) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert [place["CUDA_VISIBLE_DEVICES"] for place in Share(4, gpu=True).places(10, ["2", "5"])] == ["2", "5"]


def test_finished_ones_are_skipped_and_one_that_fails_stops_nothing(tmp_path, capsys):
    write_image(tmp_path / "in" / "good" / "1.png")
    (tmp_path / "in" / "bad").mkdir()
    (tmp_path / "in" / "bad" / "1.jpg").write_text("a text file")
    out = tmp_path / "out"
    arguments = ["batch", str(tmp_path / "in"), "--out", str(out), *SMALL]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "2 to reconstruct\n" in said.err
    assert "bad: failed after" in said.err
    assert "1.jpg: not an image in a known format" in said.out
    with (out / "batch.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert (rows["good"]["state"], rows["good"]["images"], rows["good"]["registered"]) == ("done", "1", "1")
    assert rows["bad"]["state"] == "failed"
    assert int(rows["good"]["points"]) > 100
    made = (out / "good" / "cloud.ply").stat().st_mtime_ns
    write_image(tmp_path / "in" / "bad" / "2.png")
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "2 to reconstruct, 1 of them finished before\n" in said.err
    assert "finished before" in said.out
    assert (out / "good" / "cloud.ply").stat().st_mtime_ns == made
    assert {row["state"] for row in json.loads((out / "batch.json").read_text())} == {"done"}
    assert main([*arguments, "--sky"]) == 2
    assert "was made with other options" in capsys.readouterr().err


def test_mistakes_are_refused_before_anything_is_begun(tmp_path, capsys):
    write_image(tmp_path / "in" / "1.png")
    for wrong, words in (
        (("--cores", "0"), "--cores must be at least 1, got 0"),
        (("--export", "gbl"), "gbl"),
        (("--image-size", "-1"), "image_size"),
        (("--checkpoint", "none.pth"), "no model 'none.pth'"),
    ):
        assert main(["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *wrong]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_call_at_the_same_time_is_refused(tmp_path, capsys):
    write_image(tmp_path / "in" / "1.png")
    (tmp_path / "out").mkdir()
    at_work = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(at_work, fcntl.LOCK_EX)
    try:
        assert main(["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    finally:
        os.close(at_work)
    assert "another batch is at work there" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_options_are_handed_on_as_they_were_given(tmp_path):
    from dust3r_ros.cli import make_parser

    given = ["--image-size", "224", "--set", "map.voxel_size=0.5", "--outliers", "2.0", "--sky", "--export", "glb"]
    parser = make_parser()
    first = parser.parse_args(["batch", "x", "--out", "y", *given])
    handed = results_options(first)
    second = parser.parse_args(["replay", "x", "--out", "y", *handed])
    assert results_options(second) == handed
    assert (second.export, second.sky, second.outliers) == ("glb", True, 2.0)
    assert {"image_size=224", "map.voxel_size=0.5"} <= set(second.changes)


@dataclass(frozen=True)
class Endless(Job):
    """Runs until it is stopped."""

    def arguments(self) -> list[str]:
        return ["view", "--port", "0"]


def wait_for(jobs: list[Endless], count: int) -> None:
    """Until so many of them run."""
    deadline = time.monotonic() + 120
    logs = [job.folder / LOG for job in jobs]
    while sum(log.is_file() and "The page is at" in log.read_text() for log in logs) < count:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)


def test_an_interrupt_stops_the_processes_and_leaves_their_jobs_to_begin_again(tmp_path):
    pytest.importorskip("viser")
    jobs = [Endless(name, tmp_path, tmp_path / name, "view") for name in ("a", "b", "c")]

    def interrupt() -> None:
        wait_for(jobs, 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    reported: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        run_here(jobs, Share(1).places(2), reported.append)
    states = [outcome_of(job).state for job in jobs]
    assert sorted(state.value for state in states) == ["new", "running", "running"]
    assert reported == []


def test_a_process_that_is_killed_is_a_failure_with_a_reason(tmp_path):
    job = Endless("a", tmp_path, tmp_path / "a", "view")
    outcome = run_job(job, {}, lambda child: os.kill(child.process_id, signal.SIGKILL))
    assert outcome.state is State.FAILED
    assert outcome.error.startswith("ended by SIGKILL, as the system does when memory runs out")
    assert outcome_of(job).state is State.FAILED


def test_a_process_that_takes_long_to_write_what_it_has_when_it_is_interrupted_is_to_begin_again(tmp_path):
    pytest.importorskip("viser")
    job = Endless("a", tmp_path, tmp_path / "a", "view")

    def stop(child: Child) -> None:
        wait_for([job], 1)
        os.kill(child.process_id, signal.SIGSTOP)  # it does not act on an interrupt
        child._patience_s = 0.1
        with pytest.raises(RosError, match="was killed"):
            child.stop()

    assert run_job(job, {}, stop).state is State.RUNNING
    assert outcome_of(job).state is State.RUNNING


def test_a_folder_that_cannot_be_written_is_a_failure_of_its_job_alone(tmp_path):
    touch(tmp_path / "out")
    outcome = run_job(Job("a", tmp_path, tmp_path / "out" / "a", "replay"), {})
    assert outcome.state is State.FAILED
    assert "out" in outcome.error


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path, capsys, monkeypatch, address):
    class Patient:
        def init(self, **settings):
            raise AssertionError("Ray tries for many minutes")

        def shutdown(self) -> None:
            pass

    monkeypatch.setattr("dust3r_ros.fleet.on_ray._ray", Patient)
    write_image(tmp_path / "in" / "1.png")
    assert main(["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--ray", address]) == 2
    assert f"cannot join the Ray cluster at {address!r}" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_runs_the_same_jobs(tmp_path):
    ray = pytest.importorskip("ray")
    wall = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
    for number in (0, 1):
        path = write_image(tmp_path / "in" / "good" / f"{number}.png")
        Image.fromarray(wall[:, 8 * number : 80 + 8 * number]).resize((320, 240), Image.Resampling.BICUBIC).save(path)
    touch(tmp_path / "in" / "bad.mcap")
    arguments = ["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--image-size", "160"]
    assert main([*arguments, "--cores", "1", "--ray", "local"]) == 1
    assert not ray.is_initialized()
    rows = {row["name"]: row["state"] for row in json.loads((tmp_path / "out" / "batch.json").read_text())}
    assert rows == {"good": "done", "bad": "failed"}
