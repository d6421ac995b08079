"""The table of names: every tensor lands where it should, and nothing is guessed."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from asdjax.files import sha256_file
from asdjax.models import weights_file
from asdjax.models.backbone import abstract
from asdjax.models.beats import BeatsConfig
from asdjax.types import InputError
from weights_convert import torch_file
from weights_convert.__main__ import main
from weights_convert.beats import convert, convert_file

LAYER_1 = "encoder.layers.1.self_attn"


@pytest.fixture(scope="module")
def checkpoint(golden):
    return torch_file.read(golden / "beats_tiny.pt")


@pytest.fixture(scope="module")
def config(checkpoint):
    return BeatsConfig.from_checkpoint(checkpoint["cfg"])


@pytest.fixture
def state(checkpoint):
    return dict(checkpoint["model"])


@pytest.fixture
def rewrite(checkpoint, write_checkpoint, tensor):
    """`rewrite(state, **changes)`: a checkpoint file with these tensors and other parts."""

    def write(state, **changes):
        tensors = {n: tensor(x) if isinstance(x, np.ndarray) else x for n, x in state.items()}
        tree = {"cfg": checkpoint["cfg"], "model": tensors} | changes
        return write_checkpoint({k: v for k, v in tree.items() if v is not None})

    return write


def test_every_kind_of_tensor_lands_where_it_should(state, config):
    found = convert(state, config)
    pairs = {
        "layers.1.attn.k.bias": state[f"{LAYER_1}.k_proj.bias"],  # no forward pass can see this one
        "layers.1.attn.q.kernel": state[f"{LAYER_1}.q_proj.weight"].T,
        "layers.1.attn.gate.kernel": state[f"{LAYER_1}.grep_linear.weight"].T,
        "layers.1.attn.gate_scale": state[f"{LAYER_1}.grep_a"][0, :, 0, 0],
        "layers.2.attn_norm.scale": state["encoder.layers.2.self_attn_layer_norm.weight"],
        "layers.2.ffn_norm.bias": state["encoder.layers.2.final_layer_norm.bias"],
        "layers.0.fc1.kernel": state["encoder.layers.0.fc1.weight"].T,
        "relative_bias": state["encoder.layers.0.self_attn.relative_attention_bias.weight"],
        "pos_conv.gain": state["encoder.pos_conv.0.weight_g"][0, 0],
        "norm.scale": state["encoder.layer_norm.weight"],
        "patch_norm.scale": state["layer_norm.weight"],
    }
    for name, value in pairs.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    patch = state["patch_embedding.weight"]  # (E, 1, time, mel)
    assert found["patch_embed.kernel"][16 * 3 + 5, 7] == patch[7, 0, 3, 5]
    direction = state["encoder.pos_conv.0.weight_v"]  # (out, in, tap)
    assert found["pos_conv.direction"][9, 2, 30] == direction[30, 2, 9]
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}


def test_every_number_of_the_checkpoint_is_kept_once(state, config):
    repeats = sum("relative_attention_bias" in name for name in state) - 1
    table = state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    total = sum(tensor.size for tensor in state.values()) - repeats * table.size
    assert weights_file.count(convert(state, config)) == total


def test_file_round_trip_with_header(golden, tmp_path, state, config):
    out = tmp_path / "tiny.safetensors"
    header = convert_file(golden / "beats_tiny.pt", out)
    arrays, loaded, _ = weights_file.load(out)
    assert header == loaded
    assert loaded.kind == "beats"
    assert loaded.config == json.loads(json.dumps(asdict(config)))
    assert loaded.source_sha256 == sha256_file(golden / "beats_tiny.pt")
    for name, value in convert(state, config).items():
        np.testing.assert_array_equal(arrays[name], value, strict=True)


def test_finetuned_file_brings_its_class_names(golden, tmp_path):
    header = convert_file(golden / "beats_tiny_finetuned.pt", tmp_path / "out.safetensors")
    assert header.labels == tuple(f"/m/tiny{index}" for index in range(7))


@pytest.mark.parametrize("prefix", ["model.", "module.", "beats.", "module.model."])
def test_prefixes_of_wrappers_are_stripped(rewrite, state, config, prefix, tmp_path):
    path = rewrite({prefix + name: tensor for name, tensor in state.items()})
    convert_file(path, tmp_path / "out.safetensors")
    arrays = weights_file.load(tmp_path / "out.safetensors").arrays
    assert arrays.keys() == convert(state, config).keys()


def test_newer_spelling_of_weight_norm(state, config):
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in state.items()
    }
    assert renamed.keys() != state.keys()
    old, new = convert(state, config), convert(renamed, config)
    for name in ("pos_conv.gain", "pos_conv.direction"):
        np.testing.assert_array_equal(old[name], new[name])


def test_other_structures_have_their_names_too(config):
    glu = BeatsConfig(**asdict(config) | {"activation_fn": "glu", "conv_bias": True})
    rng = np.random.default_rng(0)
    wide = {
        "patch_embedding.bias": rng.normal(size=48),
        "encoder.layers.0.fc1.linear.weight": rng.normal(size=(192, 64)),
        "encoder.layers.0.fc1.linear.bias": rng.normal(size=192),
    }
    with pytest.raises(InputError) as error:  # everything else is missing, these are not
        convert(wide, glu)
    message = str(error.value)
    expected = abstract(glu)[1]
    for name in ("patch_embed.bias", "layers.0.fc1.kernel", "layers.0.fc1.bias"):
        assert name in expected
        assert f"  {name}\n" not in message
    assert "in the file but not" not in message
    assert "wrong shape" not in message


def test_half_precision_is_widened(rewrite, state, tmp_path):
    halves = {name: tensor.astype(np.float16) for name, tensor in state.items()}
    convert_file(rewrite(halves), tmp_path / "out.safetensors")
    arrays = weights_file.load(tmp_path / "out.safetensors").arrays
    expected = state["layer_norm.bias"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(arrays["patch_norm.bias"], expected, strict=True)


def test_all_misfits_are_listed_in_one_message(state, config):
    missing = state.pop("encoder.layers.1.fc2.bias")
    state["quantize.embedding"] = missing
    state["encoder.layer_norm.bias"] = missing[:5]
    state["encoder.layers.2.self_attn.relative_attention_bias.weight"] = np.ones((320, 4))
    state["layer_norm.bias"] = np.full(48, np.nan)
    state["post_extract_proj.bias"] = np.zeros(64, np.int64)
    state["encoder.pos_conv.0.weight_g"] = np.ones((64, 1, 1))  # normalized over other axes
    with pytest.raises(InputError) as error:
        convert(state, config)
    message = str(error.value)
    for line in (
        "in the file but not in the model (1):\n  quantize.embedding\n",
        "  layers.1.fc2.bias\n",
        "  norm.bias: expected (64,), got (5,)",
        "  encoder.layers.2.self_attn.relative_attention_bias.weight: another value",
        "  layer_norm.bias: expected finite",
        "  post_extract_proj.bias: expected finite",
        "  encoder.pos_conv.0.weight_g: expected finite",
    ):
        assert line in message


def test_flat_file_without_configuration_needs_one(write_checkpoint, state, tensor, tmp_path):
    path = write_checkpoint({name: tensor(value) for name, value in state.items()})
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="--config base"):
        convert_file(path, out)
    with pytest.raises(InputError, match="wrong shape"):  # tiny is not base, and is not forced to
        convert_file(path, out, "base")
    assert not out.exists()


def test_own_configuration_of_a_file_is_not_overruled(golden, tmp_path):
    with pytest.raises(InputError, match="leave --config out"):
        convert_file(golden / "beats_tiny.pt", tmp_path / "out", "base")


def test_other_models_are_recognized(write_checkpoint, tensor, state, rewrite, tmp_path):
    weight = tensor(np.zeros(3, np.float32))
    eat = write_checkpoint({"model": {"modality_encoders.IMAGE.extra_tokens": weight}, "cfg": {}})
    with pytest.raises(InputError, match="but EAT"):
        convert_file(eat, tmp_path / "out")
    with pytest.raises(InputError, match="another model"):
        convert_file(write_checkpoint(["not even a dict"]), tmp_path / "out")
    with pytest.raises(InputError, match=r"other tensors \(1\):\n  head.weight"):
        convert_file(
            rewrite({f"beats.{n}": x for n, x in state.items()} | {"head.weight": np.zeros(2)}),
            tmp_path / "out",
        )


def test_command_converts(golden, tmp_path, capsys):
    out = tmp_path / "folder" / "tiny.safetensors"
    assert main(["beats", str(golden / "beats_tiny.pt"), str(out)]) == 0
    assert out.is_file()
    assert sha256_file(golden / "beats_tiny.pt") in capsys.readouterr().out


def test_command_reports_a_failure_and_writes_nothing(rewrite, state, tmp_path, capsys):
    del state["encoder.layers.1.fc2.bias"]
    folder = tmp_path / "folder"
    folder.mkdir()
    source = rewrite(state | {"extra.weight": np.zeros(2, np.float32)})
    assert main(["beats", str(source), str(folder / "out.safetensors")]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {source}: ")
    assert "in the file but not in the model (1):\n  extra.weight" in message
    assert "in the model but not in the file (1):\n  layers.1.fc2.bias" in message
    assert list(folder.iterdir()) == []
