"""The recipes against the reports' own tables, typed as they are printed (experiments/published).

What the product shows must be what a report prints; what a recipe runs must be what it states. (In
the files the names of systems are spelled alike: table 1 of IOA prints BERTs for BEATs.)
"""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from asdjax.files import read_csv
from asdjax.recipes import RECIPES, published

FOLDER = Path(__file__).parents[2] / "experiments" / "published"
COLUMNS = {  # recipe -> file, table, heading of its column or row
    "aithu2024/beats-full": ("aithu2024", "1", "BEATs-full"),
    "aithu2024/beats-lora": ("aithu2024", "1", "BEATs-LoRA"),
    "aithu2024/beats-pse": ("aithu2024", "1", "BEATs-pse"),
    "aithu2024/eat-full": ("aithu2024", "1", "EAT-full"),
    "aithu2024/eat-lora": ("aithu2024", "1", "EAT-LoRA"),
    "aithu2024/eat-pse": ("aithu2024", "1", "EAT-pse"),
    "aithu2024/dual": ("aithu2024", "1", "Dual Pre-trained"),
    **{f"aithu2024/system{n}": ("aithu2024", "4", f"System {n}") for n in (1, 2, 3, 4)},
    "ioa2024/hubert": ("ioa2024", "1", "HuBERT"),
    "ioa2024/beats": ("ioa2024", "1", "BEATs"),
    "ioa2024/wav2vec2": ("ioa2024", "1", "wav2vec 2.0"),
    "ioa2024/wavlm": ("ioa2024", "1", "WavLM"),
    "ioa2024/unispeech-sat": ("ioa2024", "1", "UniSpeech-SAT"),
    "ioa2024/three-subnetworks-gmm": ("ioa2024", "2", "Proposed GMM"),
    "ioa2024/three-subnetworks-kmeans": ("ioa2024", "2", "Proposed KMeans"),
    **{f"ioa2024/ensemble{n}": ("ioa2024", "3", f"Ensemble-{n}") for n in (1, 2, 3, 4)},
    **{f"korea2025/system{n}": ("korea2025", "1", f"System{n}") for n in (1, 2, 3, 4)},
    **{f"midea2024/submission{n}": ("midea2024", "1", f"Submission {n}") for n in (1, 2, 3, 4)},
    "xju2025/beats-fft": ("xju2025", "2", "System 1"),
    "xju2025/eat-fft": ("xju2025", "2", "System 2"),
    "xju2025/eat-beats": ("xju2025", "2", "System 3"),
    "xju2025/eat-beats-fft": ("xju2025", "2", "System 4"),
}
OURS = "frozen", "small", "baseline", "beyond"  # no systems of these reports


def table(report: str, number: str) -> dict[str, dict[tuple[str, str], str]]:
    """Return the cells of a report's table as printed: system -> (machine, metric) -> value."""
    found = defaultdict(dict)
    for one, system, machine, metric, value in read_csv(FOLDER / f"{report}.csv")[1:]:
        if one == number:
            found[system][machine, metric] = value
    return found


def test_every_system_of_the_reports_has_a_recipe_and_every_recipe_a_system():
    own = {name for name in RECIPES if name.split("/")[0] not in OURS}
    assert own == COLUMNS.keys() | {"aithu2024/beats-lora-flat"}
    taken = set(COLUMNS.values())
    for report in ("aithu2024", "ioa2024", "korea2025", "midea2024", "xju2025"):
        for number in "1234":
            for system, cells in table(report, number).items():
                scores = any(metric == "auc_source" for _, metric in cells)
                baseline = any(word in system for word in ("Baseline", "MSE", "MHLAE"))
                if scores and not baseline:
                    assert (report, number, system) in taken


@pytest.mark.parametrize("name", COLUMNS)
def test_what_the_product_shows_is_what_the_report_prints(name):
    report, number, system = COLUMNS[name]
    cells = table(report, number)[system]
    (shown,) = (t for data, t in published.tables(name).items() if data.startswith("dev"))
    machines = {machine for machine, _ in cells} - {"all"}
    assert published.machines(shown).keys() == machines
    assert len(machines) == 7
    for machine, values in published.machines(shown).items():
        printed = {metric: float(cell) for (name, metric), cell in cells.items() if name == machine}
        mean = {published.MEAN: printed.pop("hmean")} if "hmean" in printed else {}
        assert values == printed | mean
    if ("all", "hmean") in cells:
        assert published.total(shown) == float(cells["all", "hmean"])


AITHU = [name for name, place in COLUMNS.items() if place[:2] == ("aithu2024", "1")]


@pytest.mark.parametrize("name", AITHU)
def test_parameters_are_those_of_table_1_of_aithu(name):
    cells = table("aithu2024", "1")[COLUMNS[name][2]]
    assert RECIPES[name].parameters == f"{cells['all', 'total']} / {cells['all', 'trainable']}"


def test_clusters_are_those_of_table_2_of_aithu():
    for column, cells in table("aithu2024", "2").items():
        counts = dict(RECIPES[f"aithu2024/{column.lower()}"].config.pseudo.counts)
        assert counts == {machine: int(value) for (machine, _), value in cells.items()}


def test_coefficients_are_those_of_table_3_of_aithu():
    names = {COLUMNS[name][2]: name for name in AITHU}
    for system, cells in table("aithu2024", "3").items():
        config = RECIPES[f"aithu2024/{system.lower().replace(' ', '')}"].config
        printed = {names[model]: float(value) for (_, model), value in cells.items()}
        used = dict(zip(config.members, config.ensemble.weights, strict=True))
        assert used == {name: value for name, value in printed.items() if value}


KOREA = {  # 2.1, 2.2
    "audio.seconds": 10.0,
    "audio.fit": "pad",
    "encoders.0.weights": "beats-iter3",
    "encoders.0.adapter.targets": ("q", "k", "v"),
    "encoders.0.pooling": "mean",
    "train.heads.0.labels": "machine",
    "train.heads.0.loss.kind": "arcface",
    "train.heads.0.loss.margin": 0.2,
    "train.heads.0.loss.scale": 30.0,
    "train.optimizer.kind": "adam",
    "scorer.k": 1,
}
STATED = {  # field of the configuration -> value, as the reports' sections say
    "aithu2024/beats-full": {  # 2.1
        "audio.seconds": 10.0,
        "audio.fit": "pad",
        "encoders.0.weights": "beats-iter3",
        "encoders.0.adapter": None,
        "encoders.0.pooling": "statistics",
        "train.steps": 10_000,
        "train.batch": 32,
        "train.accumulate": 8,
        "train.optimizer.kind": "adamw",
        "train.optimizer.schedule.peak": 1e-4,
        "train.optimizer.schedule.warmup": 8 * 120,  # updates
        "train.augment.mask": 80,
        "train.heads.0.labels": "attributes",
        "train.heads.0.loss.kind": "arcface",
        "scorer.k": 1,
        "scorer.oversample.ratio": 1.0,  # "to balance"
    },
    "aithu2024/beats-lora": {  # 2.1
        "encoders.0.adapter.rank": 64,
        "encoders.0.adapter.targets": ("q", "v", "out"),
        "train.steps": 50_000,
        "train.optimizer.kind": "adamw",
        "train.optimizer.schedule.shape": "cosine",
        "train.optimizer.schedule.start": 1e-4,
        "train.optimizer.schedule.peak": 5e-3,
        "train.optimizer.schedule.end": 1e-5,
        "train.optimizer.schedule.warmup": 8 * 10,  # updates
    },
    "aithu2024/eat-full": {  # 2.2: the rest as BEATs
        "encoders.0.weights": "eat-base",
        "audio.seconds": 10.0,
        "audio.fit": "pad",
        "train.accumulate": 8,
        "train.augment.mask": 80,
        "train.heads.0.labels": "attributes",
        "train.heads.0.loss.kind": "arcface",
        "scorer.k": 1,
        "train.optimizer.kind": "adam",
        "train.optimizer.schedule.peak": 5e-5,
        "train.optimizer.schedule.warmup": 8 * 120,
        "train.batch": 32,
        "train.steps": 10_000,
    },
    "aithu2024/eat-lora": {  # 2.2: the rest as BEATs-LoRA
        "encoders.0.weights": "eat-base",
        "encoders.0.adapter.targets": ("q", "v", "out"),
        "encoders.0.pooling": "statistics",
        "audio.seconds": 10.0,
        "audio.fit": "pad",
        "train.batch": 32,
        "train.accumulate": 8,
        "train.augment.mask": 80,
        "train.heads.0.labels": "attributes",
        "train.heads.0.loss.kind": "arcface",
        "train.optimizer.schedule.shape": "cosine",
        "train.optimizer.schedule.start": 1e-4,
        "train.optimizer.schedule.warmup": 8 * 10,
        "scorer.k": 1,
        "scorer.oversample.ratio": 1.0,
        "train.optimizer.kind": "adam",
        "train.optimizer.schedule.peak": 1e-4,
        "train.optimizer.schedule.end": 1e-5,
        "train.steps": 50_000,
        "encoders.0.adapter.rank": 64,
    },
    "aithu2024/dual": {  # 2.3: settings as of BEATs and EAT
        "train.optimizer.branch_peaks": (5e-3, 1e-4),
        "train.steps": 50_000,
        "encoders.0.adapter.rank": 64,
        "encoders.1.adapter.rank": 64,
    },
    "aithu2024/beats-pse": {"pseudo.method": "agglomerative"},  # 2.4
    "ioa2024/three-subnetworks-kmeans": {  # 2
        "audio.seconds": 12.0,
        "encoders.0.view": "wave",
        "encoders.0.dense": 4,
        "encoders.0.embedding": 128,
        "encoders.1.view": "spectrum",
        "encoders.1.dense": 4,
        "encoders.1.embedding": 128,
        "encoders.2.embedding": 256,
        "encoders.2.blocks": 1,  # of each of four stages
        "train.batch": 64,
        "train.optimizer.kind": "adam",
        "train.optimizer.schedule.peak": 1e-3,
        "train.heads.0.labels": "attributes",
        "train.augment.mixup": 1.0,
    },
    **{  # abstract: these models, fine-tuned (base size and all weights are our choice)
        f"ioa2024/{name}": {"encoders.0.weights": weights, "encoders.0.adapter": None}
        for name, weights in {
            "hubert": "hubert-base",
            "beats": "beats-iter3",
            "wav2vec2": "wav2vec2-base",
            "wavlm": "wavlm-base",
            "unispeech-sat": "unispeech-sat-base",
        }.items()
    },
    **{f"korea2025/system{n}": KOREA for n in (1, 2, 3, 4)},
    "midea2024/submission1": {  # 2.1
        "audio.fit": "tile",
        "encoders.0.view": "spectrum",
        "encoders.0.cbam": True,
        "encoders.1.cbam": True,
        "train.heads.0.labels": "attributes",
        "train.heads.1.labels": "machine",
        "train.optimizer.kind": "adam",
        "pseudo": None,
    },
    "midea2024/submission2": {"pseudo.method": "kmeans"},  # 2.2
    "midea2024/submission3": {"train.augment.mixup": 1.0},  # 3
    "midea2024/submission4": {"train.augment.mixup": 1.0, "train.balance": 1.0},  # 3
}


@pytest.mark.parametrize("name", STATED)
def test_what_runs_is_what_the_report_states(name):
    for path, value in STATED[name].items():
        found = RECIPES[name].config
        for part in path.split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        assert found == value, path


def test_members_of_the_ensembles_of_ioa_are_those_of_section_4():
    three = {"ioa2024/three-subnetworks-kmeans", "ioa2024/three-subnetworks-gmm"}
    models = {f"ioa2024/{name}" for name in ("hubert", "beats", "wav2vec2", "wavlm")}
    models.add("ioa2024/unispeech-sat")
    expected = {1: three, 2: three | models, 3: three | {"ioa2024/hubert"}, 4: three | models}
    for number, members in expected.items():
        config = RECIPES[f"ioa2024/ensemble{number}"].config
        assert set(config.members) == members
        shares = dict(zip(config.members, config.ensemble.shares(len(members)), strict=True))
        assert sum(shares[name] for name in three) == pytest.approx(
            shares.get("ioa2024/hubert", 1.0)
        )
        assert config.ensemble.keep == ("accuracy" if number == 4 else "all")
        assert not config.ensemble.uses_labels


@pytest.mark.parametrize("name", [name for name in COLUMNS if name.startswith("xju2025/")])
def test_what_runs_of_xju_is_its_table_1(name):
    (cells,) = table("xju2025", "1").values()
    printed = {metric: value for (_, metric), value in cells.items()}
    recipe = RECIPES[name]
    train, smote = recipe.config.train, recipe.config.scorer.oversample
    margin, contrastive = (head.loss for head in train.heads)
    schedule = train.optimizer.schedule
    assert printed == {
        "Training Mode": "OS-SCL",
        "Loss Function": "SubCenterArcFace[6]",
        "Margin Parameter": f"{margin.margin:g}",
        "Sub-Center Number": "114",  # more centers than clips, if each class had so many: a reading
        "Total Training Steps": f"{train.steps:,}",
        "Batch Size": f"{train.batch}",
        "Learning Rate": "1\u00d710^{-4}",
        "Optimizer": "AdamW[10]",
        "Warm-up Steps": f"{schedule.warmup}",
        "Gradient Accumulation": f"{train.accumulate}",
        "Learning Rate Scheduler": schedule.shape.replace("-", "_"),
        "Data Augmentation": f"SpecAug[11], {train.augment.mask}",
        "KNN Settings": f"R: {smote.ratio:g}, N: {smote.neighbors}",  # a reading
        "Temperature": f"t = {contrastive.temperature:g}",
        "EMA Momentum": rf"$\alpha_e = {train.ema:g}$",
        "Number of Classes": f"{recipe.classes}",
    }
    assert schedule.peak == 1e-4
    assert (margin.kind, train.optimizer.kind) == ("arcface", "adamw")
    assert margin.subcenters_without_attributes > margin.subcenters
    # OS-SCL: mixup of waves, a perturbation head, a contrastive term
    assert (train.augment.mixup, train.augment.mixup_on) == (1.0, "wave")
    assert train.perturbation > 0
    assert not contrastive.has_classes


def test_the_page_of_the_reports_names_tests_and_files_that_are_there():
    root = FOLDER.parents[1]
    page = (root / "experiments" / "REPORTS.md").read_text()
    file, named = None, 0
    for quoted in re.findall(r"`([^`]+)`", page):
        if match := re.match(r"([\w/]+\.(?:py|md|csv))\b", quoted):
            file = root / match[1]
            assert file.is_file(), quoted
        if test := re.search(r"::(test_\w+)", quoted):
            named += 1
            assert f"def {test[1]}(" in file.read_text(), quoted
    assert named > 80
