"""Whole runs, small: they end in time, go on where they were, and leave what can be used."""

import csv
import os
import signal
import threading

import pytest
import torch
from training_pairs import MICRO, failing_source, wall_source

from dust3r_ros.config import TrainingConfig
from dust3r_ros.errors import ConfigError, TrainingError
from dust3r_ros.network import Dust3rNetwork, NetworkConfig, load_model
from dust3r_ros.options import make_config, options_of
from dust3r_ros.training import architectures, record
from dust3r_ros.training.begin import Source, batch_of
from dust3r_ros.training.loop import CHECKPOINT, STATE, train
from dust3r_ros.training.record import ErrorRow, LossRow, append_row, cut_after, read_rows
from dust3r_ros.training.state import Progress, read_run, restore, save_run
from dust3r_ros.training.step import Learner, StepSettings

WALLS = Source(wall_source, 12)
QUICK = {"device": "cpu", "workers": 0, "batch": 4, "pool": 64, "assess_pairs": 0, "pairs": 160, "precision": "float32"}


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", MICRO)


def learner(seed: int = 0) -> Learner:
    model = architectures.initialised(Dust3rNetwork(MICRO), torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    return Learner(model, StepSettings(), torch.Generator().manual_seed(seed))


def after(pairs: int):
    """A report that sends SIGINT once so many pairs are done."""

    def report(stage: str, done: int, whole: int) -> None:
        if done >= pairs:
            os.kill(os.getpid(), signal.SIGINT)

    return report


def test_a_run_goes_through_its_stages_and_leaves_a_model_that_loads(tmp_path):
    stages = []
    result = train(tmp_path, QUICK, source=WALLS, report=lambda stage, done, whole: stages.append((stage, done, whole)))
    assert result.finished
    assert not result.interrupted
    assert [name for name, _, _ in stages][:1] == ["completion"]
    assert list(dict.fromkeys(name for name, _, _ in stages)) == ["completion", "near", "middle", "full"]
    assert stages[-1][1] >= stages[-1][2] == 160
    model = load_model(tmp_path / CHECKPOINT, device="cpu", dtype="float32")
    assert model.config == MICRO
    assert (model.source.name, model.source.trained, model.source.licence) == ("tiny", True, "Apache-2.0")
    assert {f.name for f in tmp_path.iterdir()} == {STATE, CHECKPOINT, record.LOSSES, record.PICTURE}
    assert (tmp_path / record.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_saves_and_goes_on_with_its_options_and_new_pairs(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    first = train(tmp_path, {**QUICK, "matching": 0.25}, source=WALLS, report=after(60))
    assert first.interrupted
    assert 60 <= first.progress.pairs < 80
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    saved = read_run(tmp_path / STATE)
    assert saved.progress == first.progress
    assert saved.options["matching"] == 0.25
    assert not set(saved.options) & {"device", "minutes", "workers"}
    seen = []
    second = train(
        tmp_path, {"device": "cpu", "workers": 0}, source=WALLS, report=lambda stage, done, whole: seen.append(done)
    )
    assert second.finished
    assert seen[0] - first.progress.pairs <= 16
    assert second.progress.chunks > first.progress.chunks
    assert second.progress.seconds > first.progress.seconds
    rows = read_rows(tmp_path / record.LOSSES, LossRow)
    assert [row.pairs for row in rows] == sorted({row.pairs for row in rows})
    assert rows[-1].pairs == second.progress.pairs


def test_the_time_ends_a_run(tmp_path):
    result = train(tmp_path, {**QUICK, "pairs": 10**6, "minutes": 0.02}, source=WALLS)
    assert not result.finished
    assert not result.interrupted
    assert 0.02 * 60 < result.progress.seconds < 30
    assert (tmp_path / CHECKPOINT / "model.safetensors").exists()


def test_a_finished_run_stays_finished(tmp_path):
    first = train(tmp_path, {**QUICK, "pairs": 8}, source=WALLS)
    again = train(tmp_path, {"device": "cpu", "workers": 0}, source=WALLS)
    assert again.finished
    assert again.progress.pairs == first.progress.pairs


def test_another_architecture_is_refused(tmp_path):
    train(tmp_path, {**QUICK, "pairs": 8}, source=WALLS)
    with pytest.raises(TrainingError, match="architecture is 'tiny' in the run that is already here, got 'small'"):
        train(tmp_path, {"architecture": "small"}, source=WALLS)


def test_a_damaged_state_is_refused_by_name(tmp_path):
    (tmp_path / STATE).write_bytes(b"no state")
    with pytest.raises(TrainingError, match=r"state\.safetensors is not the state of a training run"):
        train(tmp_path, QUICK, source=WALLS)


def test_failing_renderers_end_the_run(tmp_path):
    with pytest.raises(TrainingError, match="rendering failed"):
        train(tmp_path, {**QUICK, "workers": 1}, source=Source(failing_source, 12))


def test_a_trained_network_goes_on_at_its_full_size(tmp_path):
    train(tmp_path / "one", {**QUICK, "pairs": 8}, source=WALLS)
    stages = []
    given = {**QUICK, "pairs": 32, "checkpoint": str(tmp_path / "one" / CHECKPOINT), "learning_rate": 1e-9}
    train(tmp_path / "two", given, source=WALLS, report=lambda stage, done, whole: stages.append(stage))
    assert set(stages) == {"full"}
    one, two = (load_model(tmp_path / run / CHECKPOINT, device="cpu", dtype="float32") for run in ("one", "two"))
    for a, b in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_a_restored_learner_takes_the_same_step(tmp_path):
    from training_pairs import walls

    from dust3r_ros.training.stages import Task

    one = learner()
    for number in range(3):
        one.step(walls(2, seed=number), Task.REGRESS, 1e-3, 2 * number)
    save_run(tmp_path / "state.safetensors", one, {"seed": 0}, Progress(pairs=6, steps=3))
    saved = read_run(tmp_path / "state.safetensors")
    two = learner(seed=1)
    restore(two, saved)
    assert saved.progress == Progress(pairs=6, steps=3)
    for each in (one, two):
        each.generator.manual_seed(9)
        each.step(walls(2, seed=5), Task.REGRESS, 1e-3, 6)
    for a, b in zip(one.model.parameters(), two.model.parameters()):
        assert torch.equal(a, b)
    assert all(torch.equal(value, two.average[name]) for name, value in one.average.items())


def test_a_small_state_goes_on_from_the_averaged_weights(tmp_path):
    from training_pairs import walls

    from dust3r_ros.training.stages import Task

    one, files = learner(), [tmp_path / "full.safetensors", tmp_path / "small.safetensors"]
    one.step(walls(2), Task.REGRESS, 1e-3, 0)
    for file in files:
        save_run(file, one, {}, Progress(pairs=2, steps=1), small=file.stem == "small")
    assert files[1].stat().st_size < files[0].stat().st_size / 5
    two = learner(seed=1)
    restore(two, read_run(files[1]))
    assert two.optimiser.steps == 0
    for name, value in two.model.state_dict().items():
        torch.testing.assert_close(value, one.average[name], atol=1e-3, rtol=1e-3)
        assert torch.equal(value, two.average[name])
    assert two.step(walls(2), Task.REGRESS, 1e-3, 2).gradient < float("inf")


def test_a_state_of_another_network_is_refused(tmp_path):
    save_run(tmp_path / "state.safetensors", learner(), {}, Progress())
    wide = NetworkConfig(
        img_size=(56, 84), patch=14, enc_dim=64, enc_depth=1, enc_heads=2, dec_dim=32, dec_depth=2, dec_heads=2,
        head="linear",
    )  # fmt: skip
    other = Learner(Dust3rNetwork(wide), StepSettings(), torch.Generator())
    with pytest.raises(TrainingError, match="does not fit the network"):
        restore(other, read_run(tmp_path / "state.safetensors"))


def test_interruption_is_only_asked_of_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path, {**QUICK, "pairs": 8}, source=WALLS)))
    thread.start()
    thread.join(60)
    assert results[0].finished


def loss_row(pairs: int) -> LossRow:
    return LossRow(pairs, pairs // 4, pairs / 10, "near", 1e-3, 0.5, 0.25, 1.0, 0.2, 0.1, 10.0)


def test_rows_are_read_back_and_cut(tmp_path):
    path = tmp_path / "log.csv"
    for pairs in (4, 8, 12):
        append_row(path, loss_row(pairs))
    assert read_rows(path, LossRow) == [loss_row(pairs) for pairs in (4, 8, 12)]
    cut_after(path, LossRow, 8)
    assert read_rows(path, LossRow) == [loss_row(4), loss_row(8)]
    assert read_rows(tmp_path / "none.csv", LossRow) == []
    with pytest.raises(TrainingError, match="must have the columns pairs, seconds"):
        read_rows(path, ErrorRow)
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(["x"])
    with pytest.raises(TrainingError, match="cannot be read"):
        read_rows(path, LossRow)


def test_batches_grow_as_images_shrink():
    cpu = torch.device("cpu")
    network = NetworkConfig(img_size=(168, 224), patch=14, head="linear")
    config = make_config(TrainingConfig, {"batch": 8})
    assert batch_of(config, network, (168, 224), cpu) == 8
    assert batch_of(config, network, (84, 112), cpu) == 32
    assert batch_of(config, network, (28, 28), cpu) == 32
    assert batch_of(make_config(TrainingConfig, {"batch": 64, "pool": 64}), network, (84, 112), cpu) == 32


@pytest.mark.parametrize("option", options_of(TrainingConfig).values(), ids=options_of(TrainingConfig))
def test_every_option_is_described_and_its_default_is_allowed(option):
    assert len(option.description) > 10
    assert not option.description.endswith(".")
    assert option.check(option.default) == option.default
    assert option.type not in (int, float) or option.range_text()
    assert option.type is not bool  # the command line has no way to say no


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="pairs must be at least 1, got 0"):
        train(tmp_path, {"pairs": 0}, source=WALLS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_renders_trains_and_measures(tmp_path):
    given = {"device": "cuda", "pairs": 600, "batch": 8, "textures": 64, "assess_pairs": 20}
    first = train(tmp_path, given, report=after(300))
    assert first.interrupted
    result = train(tmp_path, {"device": "cuda"})
    assert result.finished
    assert result.assessment is not None
    assert result.assessment.pairs >= 20
    assert read_rows(tmp_path / record.ERRORS, ErrorRow)[-1].rotation_deg == pytest.approx(
        result.assessment.model.rotation_deg, rel=1e-4
    )
