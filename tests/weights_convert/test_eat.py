"""The table of names: every tensor lands where it should, and nothing is guessed."""

import copy
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asdjax.files import sha256_file
from asdjax.models import weights_file
from asdjax.models.eat import EatConfig
from asdjax.models.weights_file import Header
from asdjax.types import InputError
from weights_convert import beats, torch_file
from weights_convert.__main__ import main
from weights_convert.eat import convert_file

IMAGE = "modality_encoders.IMAGE."
TINY = EatConfig(embed_dim=64, depth=3, num_heads=4, max_length=48)


@pytest.fixture(scope="module")
def checkpoint(golden):
    return torch_file.read(golden / "eat_tiny.pt")


@pytest.fixture
def state(checkpoint):
    return dict(checkpoint["model"])


@pytest.fixture
def rewrite(checkpoint, write_checkpoint, tensor):
    """`rewrite(state, cfg=..., name=...)`: a fairseq checkpoint with these tensors."""

    def wrapped(value):
        if isinstance(value, dict):
            return {name: wrapped(part) for name, part in value.items()}
        return tensor(value) if isinstance(value, np.ndarray) else value

    def write(state, cfg=checkpoint["cfg"], name="checkpoint.pt"):
        tree = {"cfg": cfg, "model": wrapped(state), "optimizer_history": [{"loss": 1.0}]}
        return write_checkpoint({k: v for k, v in tree.items() if v is not None}, name)

    return write


@pytest.fixture
def changed(checkpoint):
    """`changed(name=value, image_name=value)`: the configuration with other settings."""

    def change(**settings):
        cfg = copy.deepcopy(checkpoint["cfg"])
        for name, value in settings.items():
            image = name.startswith("image_")
            part = cfg["model"]["modalities"]["image"] if image else cfg["model"]
            part[name.removeprefix("image_")] = value
        return cfg

    return change


@pytest.fixture
def hugging_face(golden, tmp_path):
    """`hugging_face(file, **settings)`: a file of that form with its config.json beside it."""
    config = json.loads((golden / "eat_tiny_hf_config.json").read_text())

    def make(file="eat_tiny_hf.safetensors", **settings):
        folder = tmp_path / "hub"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config | settings))
        return shutil.copyfile(golden / file, folder / "model.safetensors")

    return make


def converted(source, tmp_path, config=None):
    out = tmp_path / "out.safetensors"
    convert_file(source, out, config)
    return weights_file.load(out)[:2]


def test_every_kind_of_tensor_lands_where_it_should(golden, state, tmp_path):
    found, header = converted(golden / "eat_tiny.pt", tmp_path)
    qkv, bias = state["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.bias"]
    pairs = {
        "class_token": state[f"{IMAGE}extra_tokens"][0, 0],
        "positions": state[f"{IMAGE}fixed_positional_encoder.positions"][0],
        "patch_embed.bias": state[f"{IMAGE}local_encoder.proj.bias"],
        "norm.scale": state[f"{IMAGE}context_encoder.norm.weight"],
        "layers.1.attn.q.kernel": qkv[:64].T,
        "layers.1.attn.k.kernel": qkv[64:128].T,
        "layers.1.attn.v.kernel": qkv[128:].T,
        "layers.1.attn.q.bias": bias[:64],
        "layers.1.attn.k.bias": bias[64:128],  # no forward pass can see this one
        "layers.1.attn.v.bias": bias[128:],
        "layers.1.attn.out.kernel": state["blocks.1.attn.proj.weight"].T,
        "layers.2.attn_norm.scale": state["blocks.2.norm1.weight"],
        "layers.2.ffn_norm.bias": state["blocks.2.norm2.bias"],
        "layers.0.fc1.kernel": state["blocks.0.mlp.fc1.weight"].T,
        "layers.0.fc2.bias": state["blocks.0.mlp.fc2.bias"],
    }
    for name, value in pairs.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    patch = state[f"{IMAGE}local_encoder.proj.weight"]  # (D, 1, time, mel)
    assert found["patch_embed.kernel"][16 * 3 + 5, 7] == patch[7, 0, 3, 5]
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}
    assert header == Header("eat", asdict(TINY), sha256_file(golden / "eat_tiny.pt"))


def test_every_number_of_the_student_is_kept_once(golden, state, tmp_path):
    del state["_ema"]
    total = sum(x.size for name, x in state.items() if ".decoder." not in name)
    assert weights_file.count(converted(golden / "eat_tiny.pt", tmp_path)[0]) == total


def test_both_forms_give_the_same_parameters(golden, hugging_face, tmp_path):
    fairseq, one = converted(golden / "eat_tiny.pt", tmp_path)
    other, two = converted(hugging_face(), tmp_path)
    assert fairseq.keys() == other.keys()
    for name, value in fairseq.items():
        np.testing.assert_array_equal(other[name], value, strict=True)
    assert one.config["head_norm_eps"] == 1e-6
    assert two.config == one.config | {"head_norm_eps": 1e-5}


def test_both_finetuned_forms_give_the_same_parameters(golden, hugging_face, tmp_path):
    fairseq, one = converted(golden / "eat_tiny_finetuned.pt", tmp_path)
    source = hugging_face(
        "eat_tiny_hf_finetuned.safetensors", model_variant="finetune", num_classes=7
    )
    other, two = converted(source, tmp_path)
    head = {"head_norm.scale", "head_norm.bias", "head.kernel", "head.bias"}
    assert head <= fairseq.keys() == other.keys()
    for name, value in fairseq.items():
        np.testing.assert_array_equal(other[name], value, strict=True)
    raw = torch_file.read(golden / "eat_tiny_finetuned.pt")["model"]
    np.testing.assert_array_equal(fairseq["head.kernel"], raw["head.weight"].T)
    assert one.config == asdict(TINY) | {"num_classes": 7}
    assert two.config == one.config | {"head_norm_eps": 1e-5}


def test_epsilon_of_the_class_head_follows_the_names_not_the_container(golden, tmp_path):
    """Both forms begin with `model.` when fine-tuned."""
    state = torch_file.read(golden / "eat_tiny_finetuned.pt")["model"]
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((golden / "eat_tiny_hf_config.json").read_text())
    config |= {"model_variant": "finetune", "num_classes": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = converted(tmp_path / "model.safetensors", tmp_path)[1]
    assert header.config["head_norm_eps"] == 1e-6


def test_rates_of_dropping_are_taken_over(rewrite, changed, state, hugging_face, tmp_path):
    rates = {
        "attention_dropout": 0.1,
        "encoder_dropout": 0.2,
        "activation_dropout": 0.3,
        "post_mlp_drop": 0.4,
        "dropout_input": 0.5,
        "start_drop_path_rate": 0,
        "end_drop_path_rate": 0.7,
    }
    header = converted(rewrite(state, changed(**rates)), tmp_path)[1]
    assert header.config == asdict(TINY) | rates
    assert type(header.config["start_drop_path_rate"]) is float  # a whole number in the file
    theirs = {**rates, "attn_drop_rate": 0.1, "drop_rate": 0.2}
    for name in ("attention_dropout", "encoder_dropout"):
        del theirs[name]
    header = converted(hugging_face(**theirs), tmp_path)[1]
    assert header.config == asdict(TINY) | rates | {"head_norm_eps": 1e-5}


def test_half_precision_is_widened(rewrite, state, tmp_path):
    ema = state.pop("_ema")
    halves = {name: x.astype(np.float16) for name, x in state.items()} | {"_ema": ema}
    found, _ = converted(rewrite(halves), tmp_path)
    expected = state["blocks.0.norm1.bias"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found["layers.0.attn_norm.bias"], expected, strict=True)


def test_all_misfits_are_listed_in_one_message(rewrite, state, tmp_path):
    missing = state.pop("blocks.1.mlp.fc2.bias")
    state["blocks.3.norm1.bias"] = missing
    state["blocks.0.norm1.bias"] = missing[:5]
    state["blocks.0.attn.qkv.weight"] = np.ones((191, 64), np.float32)
    state["blocks.1.attn.qkv.bias"] = np.ones(189, np.float32)
    state["blocks.2.norm2.bias"] = np.full(64, np.nan, np.float32)
    state[f"{IMAGE}extra_tokens"] = np.ones((1, 2, 64), np.float32)
    state["head.bias"] = np.ones(7, np.float32)  # a head, but the configuration has none
    with pytest.raises(InputError) as error:
        converted(rewrite(state), tmp_path)
    for line in (
        "in the file but not in the model (2):\n  blocks.3.norm1.bias\n  head.bias\n",
        "  layers.1.fc2.bias\n",
        "  layers.0.attn_norm.bias: expected (64,), got (5,)",
        "  layers.1.attn.q.bias: expected (64,), got (63,)",
        "  blocks.0.attn.qkv.weight: expected finite",
        "  blocks.2.norm2.bias: expected finite",
        f"  {IMAGE}extra_tokens: expected finite",
    ):
        assert line in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_tensor_under_two_names_is_refused(rewrite, state, tmp_path):
    twice = state | {"model.blocks.0.norm1.bias": state["blocks.0.norm1.bias"]}
    with pytest.raises(InputError, match=r"two models\n.*\(1\):\n  blocks\.0\.norm1\.bias"):
        converted(rewrite(twice), tmp_path)
    twice = state | {"extra_tokens": state[f"{IMAGE}extra_tokens"]}
    with pytest.raises(InputError, match="extra_tokens: another value for class_token"):
        converted(rewrite(twice), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm_first": True, "norm_affine": False}, "layer_norm_first.*\n.*norm_affine"),
        ({"image_prenet_depth": 2}, "prenet_depth: expected 0, got 2"),
        ({"image_use_alibi_encoder": True}, "use_alibi_encoder: expected False"),
        ({"image_embed_dim": 32}, "embed_dim: expected 64, got 32"),
        ({"depth": "12", "num_heads": None}, "depth: expected int, got '12'\n.*num_heads"),
        ({"num_heads": 5}, "num_heads: expected a divisor of 64, got 5"),
        ({"modalities": {"audio": {}}}, "no model configuration"),
    ],
)
def test_another_structure_is_refused(rewrite, state, changed, tmp_path, settings, message):
    source = rewrite(state, changed(**settings))
    with pytest.raises(InputError, match=message) as error:
        converted(source, tmp_path)
    assert str(error.value).startswith(f"{source}: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm_first": True}, "layer_norm_first: expected False, got True"),
        (
            {"stride": 10, "model_type": "vit"},
            "model_type: expected 'eat'.*\n.*stride: expected 16",
        ),
        ({"model_variant": "finetune"}, r"in the model but not in the file \(4\):\n  head"),
        ({"model_variant": "other"}, "model_variant: expected 'pretrain', got 'other'"),
        ({"depth": 4}, "in the model but not in the file.*\n  layers.3"),
        ({"num_heads": None}, "num_heads: expected int, got None"),
    ],
)
def test_another_configuration_of_hugging_face_is_refused(
    hugging_face, tmp_path, settings, message
):
    with pytest.raises(InputError, match=message):
        converted(hugging_face(**settings), tmp_path)


def test_finetuned_models_that_pool_otherwise_are_refused(golden, rewrite, tmp_path):
    tree = torch_file.read(golden / "eat_tiny_finetuned.pt")
    tree["cfg"]["model"]["prediction_mode"] = "MEAN_POOLING"
    with pytest.raises(InputError, match="prediction_mode: expected 'CLS_TOKEN'"):
        converted(rewrite(tree["model"], tree["cfg"]), tmp_path)


def test_a_missing_configuration_is_told(golden, rewrite, state, hugging_face, tmp_path):
    with pytest.raises(InputError, match="no model configuration in the file"):
        converted(rewrite(state, None), tmp_path)
    source = hugging_face()
    source.with_name("config.json").write_text("{not json")
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        converted(source, tmp_path)
    source.with_name("config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: expected an object"):
        converted(source, tmp_path)
    source.with_name("config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file.*--config"):
        converted(source, tmp_path)
    elsewhere = golden / "eat_tiny_hf_config.json"
    assert converted(source, tmp_path, elsewhere)[1].config["depth"] == 3
    with pytest.raises(InputError, match="leave --config out"):
        converted(golden / "eat_tiny.pt", tmp_path, elsewhere)


def test_other_models_are_recognized(golden, rewrite, state, hugging_face, tmp_path):
    with pytest.raises(InputError, match=r"but BEATs.*python -m weights_convert beats"):
        converted(golden / "beats_tiny.pt", tmp_path)
    with pytest.raises(InputError, match=r"but EAT.*python -m weights_convert eat"):
        beats.convert_file(golden / "eat_tiny.pt", tmp_path / "out")
    for modality in ("AUDIO", "TEXT", "VIDEO"):
        other = {name.replace("IMAGE", modality): x for name, x in state.items()}
        with pytest.raises(InputError, match=f"modality IMAGE.*{modality}"):
            converted(rewrite(other), tmp_path)
        with pytest.raises(InputError, match=f"modality IMAGE.*{modality}"):
            converted(rewrite(state | other), tmp_path)
    with pytest.raises(InputError, match=r"not an EAT checkpoint.*\n.*\n  a\.weight"):
        converted(rewrite({"a.weight": np.ones(3, np.float32)}), tmp_path)
    source = hugging_face()
    save_file({"a.weight": np.ones(3, np.float32)}, source)
    with pytest.raises(InputError, match="not an EAT checkpoint"):
        converted(source, tmp_path)


def test_unusable_safetensors_are_told(golden, hugging_face, tmp_path):
    source = hugging_face()
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: not a complete safetensors file"):
        converted(source, tmp_path)
    with pytest.raises(InputError, match=r"absent\.safetensors: no such weight file"):
        converted(tmp_path / "absent.safetensors", tmp_path)
    convert_file(golden / "eat_tiny.pt", tmp_path / "ours.safetensors")
    with pytest.raises(InputError, match="a weight file of asdjax already"):
        converted(tmp_path / "ours.safetensors", tmp_path)


def test_command_converts_both_forms(golden, hugging_face, tmp_path, capsys):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert main(["eat", str(golden / "eat_tiny.pt"), str(one)]) == 0
    assert sha256_file(golden / "eat_tiny.pt") in capsys.readouterr().out
    file, config = golden / "eat_tiny_hf.safetensors", golden / "eat_tiny_hf_config.json"
    assert main(["eat", str(file), str(two), "--config", str(config)]) == 0
    ours, theirs = load_file(one), load_file(two)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_command_reports_a_failure_and_writes_nothing(golden, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    source = golden / "eat_tiny_hf.safetensors"  # its configuration has another name
    assert main(["eat", str(source), str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {golden / 'config.json'}: no such file")
    assert not out.exists()
