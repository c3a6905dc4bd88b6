"""What the benchmark counts and writes; never how long anything takes."""

import json
import subprocess
import sys

import pytest
import torch
from network_golden import MINI

from dust3r_ros.cli import main
from dust3r_ros.evaluation.network_speed import Work
from dust3r_ros.evaluation.reference import ReferenceRunner, stream_pairs
from dust3r_ros.evaluation.timing import Timing, matrix_rate, time_together
from dust3r_ros.network import Dust3rNetwork, NetworkConfig, save_model
from dust3r_ros.training.architectures import initialised

LINEAR = NetworkConfig(
    img_size=(32, 48), enc_dim=32, enc_depth=2, enc_heads=2, dec_dim=16, dec_depth=3, dec_heads=2, head="linear"
)
CPU = torch.device("cpu")


def network(config: NetworkConfig) -> Dust3rNetwork:
    return initialised(Dust3rNetwork(config), torch.Generator().manual_seed(0)).eval()


def test_work_is_that_of_the_architecture():
    n, c, d = 6, LINEAR.enc_dim, LINEAR.dec_dim
    work = Work.of(LINEAR, (32, 48))
    encoder = 2 * n * 3 * 16 * 16 * c + 2 * (24 * n * c * c + 4 * n * n * c)
    block = 2 * n * 16 * d * d + 2 * 4 * n * n * d
    one_view = 2 * n * c * d + 3 * block + 2 * n * d * 4 * 16 * 16
    assert work.encode == encoder
    assert work.decode == 2 * one_view


def test_a_dense_head_is_more_work():
    linear = NetworkConfig(**{**vars(MINI), "head": "linear"})
    assert Work.of(MINI, (48, 64)).encode == Work.of(linear, (48, 64)).encode
    assert Work.of(MINI, (48, 64)).decode > 2 * Work.of(linear, (48, 64)).decode


def test_the_stream_has_the_pairs_of_its_windows():
    assert stream_pairs(1, 3) == 0
    assert stream_pairs(3, 1) == 4
    assert stream_pairs(10, 3) == 2 * (1 + 2 + 7 * 3)


def test_the_published_way_gives_the_networks_own_result():
    model = network(LINEAR)
    images = torch.rand(2, 1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = model.decode(*(model.encode(image) for image in images), (32, 48)).points_j
    torch.testing.assert_close(ReferenceRunner(model).pair(*images).points_j, expected)
    rounded = ReferenceRunner(model, autocast=True).pair(*images).points_j
    assert rounded.dtype == torch.float32
    assert 1e-5 < float((rounded - expected).norm() / expected.norm()) < 3e-2
    with pytest.raises(ValueError, match=r"model must be float32, got torch\.bfloat16"):
        ReferenceRunner(model.set_dtype(torch.bfloat16))


def test_calls_take_turns_and_the_first_is_not_counted():
    order = []
    times = time_together({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b"] * 4
    assert all(0 <= t.best <= t.median and t.calls == 3 for t in times.values())
    assert Timing(1.0, 2.0, 3.0, 4).times(2) == Timing(2.0, 4.0, 6.0, 4)
    assert matrix_rate(torch.float32, CPU, rounds=1) > 1e8


def test_peak_memory_sees_what_is_gone_again():
    # In a process of its own: memory that one has and does not use would take the block in without growing.
    program = """
import torch
from dust3r_ros.evaluation.timing import PeakMemory
peak = PeakMemory(torch.device("cpu"))
before = peak.bytes
block = torch.ones(1 << 25)
del block
print("unknown" if before is None else peak.bytes - before)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    if said == "unknown":
        pytest.skip("this system does not say")
    assert 1.3e8 <= int(said) < 2e8


def test_bench_writes_figures_and_a_plot(tmp_path, capsys):
    save_model(network(LINEAR), tmp_path / "model")
    out = tmp_path / "bench" / "network.json"
    arguments = ["--checkpoint", str(tmp_path / "model"), "--dtypes", "float32", "bfloat16", "--device", "cpu",
                 "--batches", "1", "2", "--windows", "1", "2", "--keyframes", "3", "--rounds", "1"]  # fmt: skip
    assert main(["bench", *arguments, "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["image"] == "48x32"
    assert figures["encode_gflop"] == pytest.approx(Work.of(LINEAR, (32, 48)).encode / 1e9)
    assert [p["dtype"] for p in figures["precisions"]] == ["float32", "bfloat16"]
    for p in figures["precisions"]:
        assert list(p["decode_a_pair"]) == list(p["encode_an_image"]) == list(p["keyframes_a_second"]) == ["1", "2"]
        rate = figures["encode_gflop"] / p["encode_an_image"]["2"]["best_ms"]
        assert p["encode_batch_tflops"]["2"] == pytest.approx(rate)
        seconds = p["encode"]["best_ms"] / 1e3
        assert p["encode_tflops"] == pytest.approx(figures["encode_gflop"] / 1e3 / seconds)
        assert p["encode_share"] == pytest.approx(p["encode_tflops"] / p["matrix_tflops"])
    stream = figures["stream"]
    assert stream["pairs"] == stream_pairs(3, 3) == 6
    ratio = stream["reference"]["float32"]["best_ms"] / stream["ours"]["bfloat16"]["best_ms"]
    assert stream["times_faster"]["bfloat16"]["float32"]["time"] == pytest.approx(ratio)
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    text = capsys.readouterr().out
    assert "published way, bfloat16 autocast" in text
    assert "| bfloat16" in text
    assert "| precision | batch | images/s |" in " ".join(text.split())


def test_random_weights_need_no_checkpoint(capsys):
    arguments = ["--architecture", "tiny", "--device", "cpu", "--size", "28x28", "--batches", "1", "--windows", "1"]
    assert main(["bench", *arguments, "--keyframes", "2", "--rounds", "1"]) == 0
    assert capsys.readouterr().out.startswith("tiny, 28x28: ")


def test_a_wrong_size_is_refused_before_the_network_is_built(monkeypatch, capsys):
    monkeypatch.setattr("dust3r_ros.network.weights.build", lambda *given: pytest.fail("built"))
    assert main(["bench", "--size", "224x160"]) == 2
    assert "got 224x160; 224x154 or 224x168 can be had" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "30x28"], "multiples of 14 pixels, got 30x28; 28x28 or 42x28 can be had"),
        (["--size", "0x500"], "multiples of 14 pixels, got 0x500; 14x490 or 14x504 can be had"),
        (["--size", "30"], "must be WIDTHxHEIGHT, such as 512x384, got '30'"),
        (["--execution", "compiled", "--dtypes", "auto", "float32"], "one of --dtypes at a time, got auto float32"),
        (["--rounds", "0"], "must be a whole number above 0, got '0'"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
    ],
)
def test_mistakes_are_said_in_one_line(capsys, arguments, message):
    try:
        code = main(["bench", *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err
