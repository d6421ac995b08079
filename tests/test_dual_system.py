"""A system of two branches: what it depends on, and its whole path from clips to scores."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from trainings import quick_compiles, small_system, two_machines

from asdjax import params, pipeline, runs
from asdjax.embedding import weights_of
from asdjax.losses.margin import Margin
from asdjax.metrics import score_files
from asdjax.models.backbone import abstract
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.embedder import Pretrained
from asdjax.models.lora import Lora
from asdjax.models.system import Branch, Trained
from asdjax.train.config import HeadConfig

WIDTH = 8  # of the embedding of a branch
ADAPTER = Lora(rank=2, alpha=2.0, targets=("q",))


def branches(*paths: Path) -> Trained:
    return Trained(tuple(Branch(str(p), ADAPTER, "mean", WIDTH) for p in paths))


def test_the_digest_of_the_weights_is_of_the_files_of_all_branches(tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    plain = hashlib.sha256(b"one").hexdigest()
    assert weights_of(branches(one)) == weights_of(Pretrained(str(one))) == plain
    systems = [(one,), (two,), (one, two), (two, one), (one, one), (two, two)]
    assert len({weights_of(branches(*paths)) for paths in systems}) == len(systems)
    for path in (one, two):
        before = weights_of(branches(one, two))
        path.write_bytes(b"other")
        assert weights_of(branches(one, two)) != before


STRUCTURES = {
    "beats": BeatsConfig(
        input_patch_size=16,
        embed_dim=16,
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=48,
        encoder_attention_heads=2,
        conv_pos=8,
        conv_pos_groups=2,
    ),
    "eat": EatConfig(embed_dim=16, depth=1, num_heads=2, max_length=8),
}


def tiny(path: Path) -> Path:
    """Write random weights of the backbone that the file is named after."""
    structure, draw = STRUCTURES[path.stem], np.random.default_rng(0).standard_normal
    values = {n: np.float32(0.3 * draw(x.shape)) for n, x in abstract(structure)[1].items()}
    params.save(path, values, params.Header(path.stem, asdict(structure)))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A complete run of BEATs and EAT side by side on two machines, but for its figures."""
    root = tmp_path_factory.mktemp("dual")
    paths = [tiny(root / f"{kind}.safetensors") for kind in STRUCTURES]
    head = HeadConfig(Margin("arcface", 0.2, 10.0), "machine", branch_weights=(0.5, 0.5))
    system = replace(small_system(paths[0]), embedder=branches(*paths))
    system = replace(system, train=replace(system.train, heads=(head,)))
    with quick_compiles(root / "compiled"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.figures, "write", lambda *_: None)
        results = pipeline.run(system, two_machines(root / "data"), root / "run")
    assert "official_score" in {metric.metric for metric in results}
    return root / "run"


def test_the_model_has_both_branches_and_a_head_for_each_and_for_both(ran):
    trained, _ = params.load(ran / runs.MODEL)
    parts = {".".join(name.split(".")[:2]) for name in trained}
    assert parts == {"branches.0", "branches.1", "heads.0", "heads.1", "heads.2"}
    shapes = [trained[f"heads.{i}.centers"].shape for i in range(3)]
    assert shapes == [(2, 1, 2 * WIDTH), (2, 1, WIDTH), (2, 1, WIDTH)]
    for branch, structure in zip(("branches.0", "branches.1"), STRUCTURES.values(), strict=True):
        assert trained[f"{branch}.project.kernel"].shape == (structure.width, WIDTH)
        # The second factor of an adapter starts at 0.
        names = [n for n in trained if n.startswith(f"{branch}.backbone") and n.endswith("lora_b")]
        assert names
        assert all(trained[name].any() for name in names)


def test_scores_are_distances_of_the_embeddings_of_both_branches(ran):
    made, scores = runs.load(ran), {f.machine: f for f in score_files.load(ran / "scores")}
    assert set(scores) == {"fan", "pump"}
    for group, clips in made.groups.items():
        values = runs.load_embeddings(ran, made, group).values.astype(np.float64)
        assert values.shape == (len(clips), 2 * WIDTH)
        for own in np.split(values, 2, axis=1):
            assert np.ptp(own, axis=0).all()  # each branch tells clips apart
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        train = [i for i, clip in enumerate(clips) if clip.split == "train"]
        got = dict(zip(scores[group[0]].names, scores[group[0]].values, strict=True))
        want = {
            clip.name: 1 - (unit[train] @ unit[i]).max()
            for i, clip in enumerate(clips)
            if clip.split == "test"
        }
        assert got.keys() == want.keys()
        # 1e-6: float32 cosines near 1.
        np.testing.assert_allclose([got[n] for n in want], [*want.values()], rtol=0, atol=1e-6)
