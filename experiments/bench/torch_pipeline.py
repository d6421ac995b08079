"""The peer of `pipelines.py`: a pipeline as public code of this field has it, in eager PyTorch.

    python torch_pipeline.py {frozen,lora,small} --weights FILE --data DIR --out DIR

Files are read one after the other by soundfile into float32; Kaldi features are computed clip by
clip on the CPU; the network runs in float32 on batches of 32; scikit-learn finds the nearest
neighbors of each machine. A training keeps the features of all clips that it draws from (which is
quicker than to compute them in each epoch, as most public code does), and classifies attributes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from pipelines import TINY
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch_beats import torch_beats
from torch_finetune import Fbank, adamw, load

from asdjax.models.weights_file import load as load_weights

BATCH, SAMPLES = 32, 160_000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LORA_STEPS, LORA_BATCH, SMALL_STEPS = 100, 8, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("frozen", "lora", "small"))
    for name in ("weights", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    files = sorted(given.data.glob("*/*/*.wav"))
    train = [path.parent.name == "train" for path in files]
    embed = KINDS[given.kind](files, np.array(train), given.weights)
    for machine in sorted({path.parents[1].name for path in files}):
        rows = [i for i, path in enumerate(files) if path.parents[1].name == machine]
        write(given.out, machine, [files[i] for i in rows], [train[i] for i in rows], embed[rows])


def write(out: Path, machine: str, files: list[Path], train: list[bool], x: np.ndarray) -> None:
    """Score the test clips of a machine by their nearest training clip."""
    train = np.array(train)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute", metric="cosine").fit(x[train])
    score = search.kneighbors(x[~train])[0][:, 0]
    path = out / "scores" / f"anomaly_score_{machine}_section_00_test.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [file.name for file, own in zip(files, train, strict=True) if not own]
    with path.open("w") as file:
        csv.writer(file).writerows(zip(names, score.tolist(), strict=True))


def read(path: Path) -> torch.Tensor:
    wave = soundfile.read(path, dtype="float32")[0]
    return torch.from_numpy(wave)


def features(files: list[Path], of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the features of all files, one after the other."""
    return torch.stack([of(read(path)[None])[0] for path in files])


@torch.inference_mode()
def in_batches(x: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    return torch.cat([network(part.to(DEVICE)).cpu() for part in x.split(BATCH)]).numpy()


def frozen(files: list[Path], train: np.ndarray, weights: Path) -> np.ndarray:
    forward = torch_beats(TINY, load_weights(weights).arrays, DEVICE)
    mel = features(files, kaldi())
    return in_batches(mel, lambda x: forward(x).mean(1))


def lora(files: list[Path], train: np.ndarray, weights: Path) -> np.ndarray:
    model = load("lora", TINY).to(DEVICE)
    mel = features(files, kaldi())
    optimizer = adamw(model)
    label = classes(files)
    for rows in draws(train, LORA_STEPS, LORA_BATCH):
        x = mel[rows].to(DEVICE)
        tokens = model.backbone(x)
        loss = model.heads[0](model.project(model.pool(tokens)), label[rows].to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return in_batches(mel, lambda x: model.project(model.pool(model.backbone(x))))


def small(files: list[Path], train: np.ndarray, weights: Path) -> np.ndarray:
    """Levels in bands of the spectrum and of the spectrogram, two dense layers, AdaCos."""
    window = torch.hann_window(1024)

    def levels(wave: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(wave).abs().square()[:, : 125 * 640] / wave.shape[1]
        whole = (power.unflatten(1, (125, -1)).mean(-1).sqrt() + 1e-4).log()
        frames = torch.fft.rfft(wave.unfold(1, 1024, 512) * window).abs()[..., 13:]
        level = (frames[..., : 62 * 8] + 1e-3).log()
        level = level.unflatten(2, (62, 8)).mean(-1)
        return torch.cat([whole, level.mean(1), level.std(1)], 1)

    x = features(files, levels)
    label = classes(files)
    parts = nn.ModuleList(
        nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs, bias=False))
        for inputs, outputs in ((125, 32), (124, 128))
    ).to(DEVICE)
    count = int(label.max()) + 1
    centers = nn.Parameter(torch.randn(count, 160, device=DEVICE))
    optimizer = torch.optim.Adam([*parts.parameters(), centers], lr=1e-3)
    scale, rng = 2**0.5 * np.log(count - 1), np.random.default_rng(0)

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([parts[0](x[:, :125]), parts[1](x[:, 125:])], 1)

    for rows in draws(train, SMALL_STEPS, BATCH):
        share = rng.random() if rng.random() < 0.5 else 1.0
        other = rows[torch.randperm(len(rows))]
        mixed = share * x[rows] + (1 - share) * x[other]
        logits = scale * F.linear(F.normalize(network(mixed.to(DEVICE))), F.normalize(centers))
        loss = share * F.cross_entropy(logits, label[rows].to(DEVICE))
        loss = loss + (1 - share) * F.cross_entropy(logits, label[other].to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parts.eval()
    return in_batches(x, network)


def kaldi() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the normalized log-mel of waves `[B, N]` in [-1, 1]."""
    of_int16 = Fbank(TINY)
    return lambda wave: of_int16(wave * 32_768)


def classes(files: list[Path]) -> torch.Tensor:
    """Return the class of each training file: its machine and attributes; 0 of others."""
    names = [f"{p.parents[1].name} {p.stem.partition('normal_')[2][5:]}" for p in files]
    known = sorted({n for n, p in zip(names, files, strict=True) if p.parent.name == "train"})
    numbers = {name: i for i, name in enumerate(known)}
    return torch.tensor([numbers.get(name, 0) for name in names])


def draws(train: np.ndarray, steps: int, batch: int):
    """Yield the rows of each batch, epoch after epoch."""
    own = torch.from_numpy(np.flatnonzero(train))
    queue = own[:0]
    for _ in range(steps):
        while len(queue) < batch:
            queue = torch.cat([queue, own[torch.randperm(len(own))]])
        yield queue[:batch]
        queue = queue[batch:]


KINDS = {"frozen": frozen, "lora": lora, "small": small}

if __name__ == "__main__":
    main()
