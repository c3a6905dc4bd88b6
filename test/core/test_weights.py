import argparse
import hashlib
import json
import logging
import os
import pickle
import re
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_golden import CONFIGS, MINI, constructor, golden_image, golden_model, golden_state, write_pth
from safetensors.torch import load_file, save_file

from dust3r_ros.errors import CheckpointError, ConfigError
from dust3r_ros.network import ModelSource, NetworkConfig, hub, load_model, save_model, weights
from dust3r_ros.network.architecture import config_from_constructor, config_from_keywords, keywords_from_config

SMALL = CONFIGS["small_linear"]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return golden_state(SMALL)


@pytest.fixture
def pth(tmp_path, state) -> Path:
    return write_pth(tmp_path / "small.pth", SMALL, state)


def published_keywords(config: NetworkConfig) -> dict[str, object]:
    """A ``config.json`` as the publisher's, without what only this package writes."""
    keywords = keywords_from_config(config)
    del keywords["square_images"], keywords["dpt_dim"], keywords["mlp_ratio"]
    return {**keywords, "landscape_only": False, "patch_embed_cls": "PatchEmbedDust3R", "freeze": "none"}


def write_hub(folder: Path, config: NetworkConfig, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(published_keywords(config)))
    return folder


def relative_error_of_golden(model, file: Path) -> float:
    height, width = map(int, re.search(r"(\d+)x(\d+)", file.stem).groups())
    with torch.inference_mode():
        tokens = [model.encode(golden_image(name, height, width)) for name in "ab"]
        points = model.decode(*tokens, (height, width)).points_j[0].numpy()
    reference = np.load(file)["pts3d_2_in_1"]
    return float(np.linalg.norm(points - reference) / np.linalg.norm(reference))


def message_of(path: Path | str, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, device="cpu", **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


# Forms of checkpoint files


@pytest.mark.parametrize("name", ["small_linear", "small_dpt"])
def test_files_of_the_published_forms_give_the_golden_outputs(shared, tmp_path, name):
    config = CONFIGS[name]
    state = golden_state(config)
    golden = shared / "golden" / f"{name}_48x64.npz"
    file = write_pth(tmp_path / "published.pth", config, state)
    model = load_model(file, device="cpu", dtype="float32")
    assert not model.training
    assert model.source == ModelSource("published", True, "CC BY-NC-SA 4.0 (Naver; research, non-commercial use only)")
    assert relative_error_of_golden(model, golden) < 2e-5
    file.unlink()

    folder = write_hub(tmp_path / "hub", config, without_duplicates(state))
    assert relative_error_of_golden(load_model(folder, device="cpu", dtype="float32"), golden) < 2e-5


def without_duplicates(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a hub file: of two names for one parameter only one is kept."""
    return {name: value for name, value in state.items() if not re.search(r"scratch\.layer\d_rn", name)}


def test_of_two_names_either_will_do(tmp_path):
    """Safetensors files keep one name of a shared parameter, and which one depends on the library that wrote them."""
    dpt = NetworkConfig(enc_dim=16, enc_depth=1, enc_heads=1, dec_dim=16, dec_depth=2, dec_heads=1, dpt_dim=16)
    state = golden_state(dpt)
    second = without_duplicates(state)
    first = {re.sub(r"layer_rn\.(\d)", lambda m: f"layer{int(m[1]) + 1}_rn", n): v for n, v in second.items()}
    assert first.keys() != second.keys()
    keywords = json.dumps({**published_keywords(dpt), "dpt_dim": 16})
    loaded = []
    for k, kept in enumerate((first, second, state)):
        folder = write_hub(tmp_path / str(k), dpt, kept)
        (folder / "config.json").write_text(keywords)
        loaded.append(load_model(folder, device="cpu", dtype="float32").state_dict())
    for name, value in loaded[0].items():
        assert torch.equal(value, loaded[1][name])
        assert torch.equal(value, loaded[2][name])
    del second["downstream_head1.dpt.scratch.layer_rn.2.weight"]
    folder = write_hub(tmp_path / "neither", dpt, second)
    (folder / "config.json").write_text(keywords)
    assert "1 missing (downstream_head1.dpt.scratch.layer_rn.2.weight)" in message_of(folder)


def test_a_folder_or_its_file_may_be_named(tmp_path, state, pth):
    folder = write_hub(tmp_path / "named", SMALL, state)
    for path in (folder, str(folder), folder / "model.safetensors", pth, pth.parent):
        model = load_model(path, device="cpu", dtype="float32")
        assert model.config == config_from_constructor(constructor(SMALL))
        assert torch.equal(model.enc_norm.weight, state["enc_norm.weight"])
    assert load_model(folder, device="cpu", dtype="float32").source.name == "named"


@pytest.mark.parametrize("places", [False, True])
def test_own_weights_come_back_as_they_were(tmp_path, places):
    model = golden_model(replace(MINI, places=places))
    source = ModelSource("mine", trained=True, licence="Apache-2.0")
    save_model(model, tmp_path / "out", source)
    loaded = load_model(tmp_path / "out", device="cpu", dtype="float32")
    assert loaded.config == model.config
    assert loaded.source == source
    for name, value in model.state_dict().items():
        if not re.search(r"layer\d_rn", name):  # golden values differ between the two names
            assert torch.equal(value, loaded.state_dict()[name])
    save_model(loaded, tmp_path / "out", dtype="float16")
    again = load_model(tmp_path / "out", device="cpu", dtype="float32")
    assert again.source == source
    assert torch.equal(again.decoder_embed.weight, loaded.decoder_embed.weight.half().float())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(tmp_path / "out" / "model.safetensors")["enc_norm.weight"].dtype == torch.float16


def test_half_precision_weights_are_saved_and_loaded(tmp_path):
    save_model(golden_model(MINI).set_dtype(torch.bfloat16), tmp_path)
    model = load_model(tmp_path, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert load_model(tmp_path, device="cpu", dtype="float16").dtype == torch.float16
    assert load_model(tmp_path, device="cpu", dtype="float32").dtype == torch.float32


def test_the_model_does_not_depend_on_its_file_once_loaded(pth, state):
    model = load_model(pth, device="cpu", dtype="float32")
    pth.write_bytes(b"\0" * pth.stat().st_size)
    assert torch.equal(model.patch_embed.proj.weight, state["patch_embed.proj.weight"])


# Files that are not what they should be


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_hostile_pickles_are_refused_and_not_run(tmp_path, state):
    ran = tmp_path / "ran"
    torch.save({"model": state, "args": Evil(ran)}, tmp_path / "args.pth")
    torch.save({"model": Evil(ran), "args": argparse.Namespace(model=constructor(SMALL))}, tmp_path / "weights.pth")
    torch.save(Evil(ran), tmp_path / "whole.pth")
    torch.save(Evil(ran), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil(ran)))
    for name in ("args", "weights", "whole"):
        assert re.search(rf"{name}.pth: refused: it holds (posix|nt).system", message_of(tmp_path / f"{name}.pth"))
    for name in ("legacy", "bare"):
        assert "refused: a bare pickle" in message_of(tmp_path / f"{name}.pth")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text\n" * 50, "not a whole PyTorch"),
        (b"\0" * 999, "not a whole PyTorch"),
    ],
)
def test_other_files_are_refused(tmp_path, content, expected):
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    text = message_of(file)
    assert str(file) in text
    assert expected in text


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("holiday/photo.txt", "not a model")
    assert "not a whole PyTorch checkpoint" in message_of(tmp_path / "zip.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    assert "a compressed archive" in message_of(tmp_path / "bomb.pth")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, pth, state, kept):
    content = pth.read_bytes()
    pth.write_bytes(content[: int(kept * len(content))])
    assert "not a whole PyTorch checkpoint" in message_of(pth)
    file = write_hub(tmp_path / "hub", SMALL, state) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert "not a whole safetensors file" in message_of(file)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_harmless(tmp_path_factory, place, value):
    config = NetworkConfig(enc_dim=8, enc_depth=1, enc_heads=1, dec_dim=8, dec_depth=1, dec_heads=1, head="linear")
    state = golden_state(config)
    file = write_pth(tmp_path_factory.mktemp("changed") / "model.pth", config, state)
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= value
    file.write_bytes(content)
    try:
        model = load_model(file, device="cpu", dtype="float32")
    except CheckpointError as error:
        assert str(file) in str(error)
    else:
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_names_and_shapes_must_match_exactly(tmp_path, state):
    changed = dict(state)
    del changed["enc_norm.bias"], changed["mask_token"]
    changed["head.extra"] = torch.zeros(3)
    changed["decoder_embed.weight"] = torch.zeros(64, 97)
    text = message_of(write_pth(tmp_path / "wrong.pth", SMALL, changed))
    assert "2 missing (mask_token, enc_norm.bias)" in text
    assert "1 unexpected (head.extra)" in text
    assert "1 of wrong shape (decoder_embed.weight (64, 97) instead of (64, 96))" in text


def test_many_differences_are_counted_and_the_first_named(tmp_path, state):
    text = message_of(write_pth(tmp_path / "wrong.pth", SMALL, {f"module.{n}": v for n, v in state.items()}))
    assert f"{len(state)} missing (mask_token, " in text
    assert f"and {len(state) - 5} more)" in text


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_must_be_floating_point(tmp_path, state, dtype):
    changed = {**state, "enc_norm.bias": torch.zeros(96, dtype=dtype)}
    assert f"not floating point (enc_norm.bias {dtype})" in message_of(write_pth(tmp_path / "kind.pth", SMALL, changed))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(tmp_path, state, value):
    weight = state["dec_blocks.1.mlp.fc1.weight"].clone()
    weight[3, 4] = value
    changed = {**state, "dec_blocks.1.mlp.fc1.weight": weight}
    text = message_of(write_hub(tmp_path / "hub", SMALL, changed))
    assert "dec_blocks.1.mlp.fc1.weight has values that are not finite" in text


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {}}, {"model": {}}, [1, 2], {"model": [1], "args": argparse.Namespace(model="")},
     {"model": {}, "args": {"lr": 0.1}}, {"model": {"a": "text"}, "args": argparse.Namespace(model="x")}],
)  # fmt: skip
def test_dicts_of_another_form_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    assert re.search(
        "not a DUSt3R checkpoint|must be the architecture's text|must map", message_of(tmp_path / "other.pth")
    )


def test_a_folder_must_hold_one_checkpoint(tmp_path, state):
    assert "found none" in message_of(tmp_path)
    for name in "ab":
        write_pth(tmp_path / f"{name}.pth", SMALL, state)
    assert "found a.pth, b.pth" in message_of(tmp_path)


def test_safetensors_need_their_config(tmp_path, state):
    folder = write_hub(tmp_path / "hub", SMALL, state)
    config = folder / "config.json"
    for content, expected in [
        ("{", "is not JSON"),
        ("[1]", "must hold an object, got a list"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps({**published_keywords(SMALL), "two_confs": True}), "unknown architecture option 'two_confs'"),
        (json.dumps({**published_keywords(SMALL), "dust3r_ros": {"name": 3}}), "must hold name, trained and licence"),
    ]:
        config.write_text(content)
        assert expected in message_of(folder)
    config.unlink()
    assert "lacks config.json beside it" in message_of(folder)


# The architecture's text


def test_the_published_constructor_is_understood():
    text = (
        "AsymmetricCroCo3DStereo(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), "
        "head_type='dpt', output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
        "enc_embed_dim=1024, enc_depth=24, enc_num_heads=16, dec_embed_dim=768, dec_depth=12, dec_num_heads=12)"
    )
    assert config_from_constructor(text) == NetworkConfig()
    small = config_from_constructor(text.replace("512, 512", "224, 224").replace("dpt", "linear"))
    assert small == NetworkConfig(img_size=(224, 224), square=True, head="linear")
    for config in (MINI, replace(MINI, places=True)):
        assert config_from_keywords(json.loads(json.dumps(keywords_from_config(config)))) == config


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("AsymmetricCroCo3DStereo", "AsymmetricMASt3R", "unknown architecture 'AsymmetricMASt3R'"),
        ("'pts3d'", "'pts3d+desc24'", "output_mode='pts3d+desc24' is not supported"),
        ("'linear'", "'catmlp+dpt'", "head must be linear or dpt, got 'catmlp+dpt'"),
        ("enc_depth=3", "enc_depth=__import__('os').system('false')", "enc_depth in the architecture's text must be a"),
        ("enc_depth=3", "enc_depth=3, two_confs=True", "unknown architecture option 'two_confs'"),
        ("enc_depth=3, ", "", "the architecture lacks enc_depth"),
        ("enc_depth=3", "enc_depth=-3", "enc_depth must be an integer"),
        ("enc_depth=3", "enc_depth=3.0", "enc_depth must be an integer"),
        ("enc_depth=3", "enc_depth=10**9", "must be a constant, got a BinOp"),
        ("enc_depth=3", "enc_depth=999999999", "enc_depth must be an integer from 1 to 64"),
        ("enc_depth=3", "**{}", "must all be keywords"),
        ("enc_depth=3", "enc_depth=" + "(" * 500, "not a constructor call"),
        ("enc_depth=3", "enc_depth=3" + " " * 5000, "at most 4096 characters"),
        ("'RoPE100'", "'cosine'", "pos_embed must be 'RoPE' and its base"),
        ("'RoPE100'", "'RoPEnan'", "rope_base must be above 1"),
        ("'RoPE100'", "'RoPE100+cosine'", "pos_embed must be 'RoPE' and its base, then perhaps '+places'"),
        ("-inf, inf", "0, inf", "depth_mode must be"),
        ("('exp', 1, inf)", "'exp'", "unsupported architecture"),
        ("(512, 512)", "('a', 'b')", "unsupported architecture"),
        ("AsymmetricCroCo3DStereo(", "os.system(", "must be a constructor call"),
        ("AsymmetricCroCo3DStereo(", "[].append(lambda: ", "is not a constructor call"),
        ("AsymmetricCroCo3DStereo(", "(lambda **k: 0)(", "must be a constructor call"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path, state, old, new, expected):
    text = constructor(SMALL)
    assert old in text
    assert expected in message_of(write_pth(tmp_path / "model.pth", SMALL, state, text.replace(old, new)))


# Names of models, devices, licence


def test_an_unknown_name_is_explained(tmp_path):
    text = message_of("dust4r")
    assert "no model 'dust4r': neither a file or folder, nor one of tiny, 224_linear, 512_linear, 512_dpt" in text
    assert "no model" in message_of(tmp_path / "absent.pth")
    assert "no model" in message_of("folder/absent.pth")


def test_a_missing_shipped_model_is_explained(monkeypatch):
    monkeypatch.setattr(weights, "TINY", "unshipped")
    assert "this installation has no 'unshipped' model" in message_of("unshipped")


def test_the_device_must_exist(pth):
    for device in ("gpu", "cuda:99", "", "cpu:x"):
        with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here, expected auto, cpu, cuda"):
            load_model(pth, device=device)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_model(pth, device="auto").device.type == expected


def test_the_dtype_must_be_known(pth, tmp_path):
    with pytest.raises(ConfigError, match="dtype must be auto, float32, bfloat16, float16, got 'int8'"):
        load_model(pth, device="cpu", dtype="int8")
    with pytest.raises(ConfigError, match="dtype must be float32"):
        save_model(golden_model(MINI), tmp_path / "out", dtype="auto")


@pytest.mark.parametrize(("flags", "dtype"), [("fpu amx_bf16 amx_tile", "bfloat16"), ("fpu avx512_bf16", "float32")])
def test_on_a_cpu_auto_is_bfloat16_only_where_there_are_matrix_units(tmp_path, monkeypatch, pth, flags, dtype):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\n")
    found = weights.has_matrix_units(cpuinfo)
    assert found == (dtype == "bfloat16")
    assert not weights.has_matrix_units(tmp_path / "absent")
    monkeypatch.setattr(weights, "has_matrix_units", lambda: found)
    assert load_model(pth, device="cpu").dtype == getattr(torch, dtype)


def test_overflow_in_half_precision_is_noticed(pth):
    model = load_model(pth, device="cpu", dtype="float32")
    assert weights.half_is_safe(model)
    with torch.no_grad():
        model.dec_blocks[0].mlp.fc2.weight.mul_(1e6)
    assert weights.half_is_safe(model)
    assert not weights.half_is_safe(model.set_dtype(torch.float16))


def test_the_published_licence_is_said_once(pth, caplog):
    weights._announce_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        load_model(pth, device="cpu", dtype="float32")
        load_model(pth, device="cpu", dtype="float32")
    assert [r.getMessage() for r in caplog.records if "licence" in r.getMessage()] == [
        "licence of the network's weights: CC BY-NC-SA 4.0 (Naver; research, non-commercial use only)"
    ]


# The hub's cache


REPOSITORY = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache and no network."""
    folder = tmp_path / "hub_cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def fill_cache(cache: Path, state: dict[str, torch.Tensor]) -> Path:
    """As huggingface_hub lays it out: snapshots of links to blobs named by SHA-256."""
    root = cache / f"models--{REPOSITORY.replace('/', '--')}"
    written = write_hub(cache / "written", SMALL, state)
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (root / part).mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for file in sorted(written.iterdir()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (root / "snapshots" / COMMIT / file.name).symlink_to(blob)
    return root / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["512_dpt", REPOSITORY])
def test_a_cached_hub_model_needs_no_network(cache, state, name):
    fill_cache(cache, state)
    model = load_model(name, device="cpu", dtype="float32")
    assert model.source.name == REPOSITORY
    assert model.source.licence.startswith("CC BY-NC-SA 4.0")
    assert torch.equal(model.enc_norm.weight, state["enc_norm.weight"])


def test_without_network_and_cache_it_says_what_to_do(cache):
    text = message_of("512_dpt")
    assert f"no model {REPOSITORY}" in text
    assert "the hub cannot be reached" in text
    assert f"not in {cache}/models--naver--DUSt3R_ViTLarge_BaseDecoder_512_dpt" in text
    assert f"hf download {REPOSITORY} config.json model.safetensors" in text
    assert "'tiny' and 'geometric' need no download" in text


def test_a_hub_that_cannot_be_reached_is_tried_once(cache, monkeypatch, caplog, capsys):
    tried = []

    def nowhere(host, *rest, **options):
        tried.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert "the hub cannot be reached ([Errno -2] Name or service not known)" in message_of("512_dpt")
    assert len(tried) == 1
    assert not caplog.records
    assert capsys.readouterr().err == ""


def test_a_name_the_hub_refuses_is_an_error(cache):
    assert "no model a--b/c..d" in message_of("a--b/c..d")


def test_a_damaged_download_is_noticed(cache, state, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import LocalEntryNotFoundError

    snapshot = fill_cache(cache, state)

    def download(repository, file, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not there yet")
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert hub.fetch(REPOSITORY) == snapshot
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-4] + b"\0\0\0\0")
    assert "damaged download, expected SHA-256" in message_of("512_dpt")
