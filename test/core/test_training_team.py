"""Several processes train one network: real ones, as torchrun starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_pairs import MICRO

from dust3r_ros.network import ModelSource, load_model, save_model
from dust3r_ros.network.model import Dust3rNetwork
from dust3r_ros.training import architectures
from dust3r_ros.training.loop import STATE
from dust3r_ros.training.record import LOSSES, LossRow, read_rows
from dust3r_ros.training.state import read_run
from dust3r_ros.training.team import Team, team_of_environment

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
OPTIONS = ("--device", "cpu", "--workers", "0", "--assess-pairs", "0", "--textures", "64", "--stages", "full")
MEMBER = """
import sys
from pathlib import Path
import torch
from dust3r_ros.training.team import joined, team_of_environment

team, cpu = team_of_environment(), torch.device("cpu")
with joined(team, cpu):
    one, two = torch.full((2, 3), float(team.rank)), torch.tensor([10.0 * team.rank, 4.0])
    team.average([one, two])
    asked = [team.any(said, cpu) for said in (False, team.rank == 1, True)]
Path(sys.argv[1], str(team.rank)).write_text(f"{one.tolist()} {two.tolist()} {asked} {team.leads}")
"""


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*TORCHRUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def test_alone_nothing_is_averaged_and_nobody_else_is_asked():
    team = team_of_environment()
    values = torch.tensor([1.0, 2.0])
    team.average([values])
    assert values.tolist() == [1.0, 2.0]
    assert [team.any(said, values.device) for said in (True, False)] == [True, False]
    assert team.leads
    assert team == Team()


def test_processes_average_and_agree(tmp_path):
    (tmp_path / "member.py").write_text(MEMBER)
    ran = torchrun("member.py", tmp_path, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    said = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    half = [[0.5] * 3] * 2
    assert said == [f"{half} [5.0, 4.0] [False, True, True] {leads}" for leads in (True, False)]


@pytest.fixture
def start(tmp_path) -> Path:
    network = architectures.initialised(Dust3rNetwork(MICRO), torch.Generator().manual_seed(0))
    save_model(network, tmp_path / "start", ModelSource("start", True, "Apache-2.0"))
    return tmp_path / "start"


def test_a_run_of_two_processes_counts_the_pairs_of_both_and_goes_on_with_one(tmp_path, start):
    sizes = ("--batch", "4", "--pool", "64", "--precision", "float32")
    command = ("-m", "dust3r_ros", "train", "--out", tmp_path / "run", *OPTIONS)
    ran = torchrun(*command, *sizes, "--checkpoint", start, "--pairs", "40", "-v", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("40 of 40") == 1, ran.stdout
    assert ran.stderr.count("stage full") == 1, ran.stderr
    saved = read_run(tmp_path / "run" / STATE)
    assert (saved.progress.pairs, saved.progress.steps) == (40, 5)
    assert read_rows(tmp_path / "run" / LOSSES, LossRow)[-1].pairs == 40
    trained = load_model(tmp_path / "run" / "model", device="cpu", dtype="float32")
    before = load_model(start, device="cpu", dtype="float32")
    assert not torch.equal(trained.decoder_embed.weight, before.decoder_embed.weight)
    alone = [sys.executable, *map(str, command), "--pairs", "48"]
    went_on = subprocess.run(alone, capture_output=True, text=True, timeout=300, check=False)
    assert went_on.returncode == 0, went_on.stderr
    assert "48 of 48" in went_on.stdout
    assert read_run(tmp_path / "run" / STATE).progress.steps == 7


def test_an_interruption_sent_to_all_of_them_saves_the_run(tmp_path, start):
    sizes = ("--batch", "4", "--pool", "64", "--checkpoint", str(start), "-v")
    command = [*TORCHRUN, "-m", "dust3r_ros", "train", "--out", "run", *OPTIONS, *sizes]
    log = tmp_path / "log"
    with log.open("w") as file:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 200
        while "pairs, full" not in log.read_text():
            assert running.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        members = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        for process in (*members, running.pid):  # as a service manager does; torchrun then passes it on once more
            os.kill(int(process), signal.SIGINT)
        running.wait(timeout=60)
    finally:
        running.kill()
    assert "the same command goes on" in log.read_text(), log.read_text()
    assert read_run(tmp_path / "run" / STATE).progress.pairs >= 8
