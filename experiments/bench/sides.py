"""One side of one benchmark, in a process of its own; `compare.py` starts and drives it.

    python experiments/bench/sides.py CASE SIDE OUTPUT.npy

makes the input (the same for every side), runs once to compile and warm up, stores the result in
OUTPUT.npy, prints a line that describes itself, and then, for every line it reads, prints the
seconds of one more call. Only this file knows how a side is computed; our sides need jax, flax and
numpy alone.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable

import numpy as np

Call = Callable[[], np.ndarray]  # computes and waits for the result


def waves() -> np.ndarray:
    """Return 32 clips of 10 s, `[32, 160000]` float32."""
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal((32, 160_000))).astype(np.float32)


def fbank_ours() -> Call:
    from asdjax.frontend.fbank import BEATS, fbank

    wave = waves()
    return lambda: np.asarray(fbank(wave, BEATS))


def fbank_kaldi_native_fbank() -> Call:
    """One clip after another: the library has no batch."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = 16_000
    options.frame_opts.window_type = "povey"
    options.mel_opts.num_bins = 128

    def one(wave: np.ndarray) -> np.ndarray:
        bank = kaldi_native_fbank.OnlineFbank(options)
        bank.accept_waveform(16_000, wave * 32768)
        bank.input_finished()
        return np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])

    clips = waves()
    return lambda: np.stack([one(wave) for wave in clips])


def fbank_torch_loop(keep_filters: bool) -> Call:
    """One clip after another, each clip's frames at once.

    Args:
      keep_filters: make window and mel filters once; `torchaudio.compliance.kaldi.fbank`, which the
        BEATs code calls for each clip, makes them in every call.
    """
    import torch

    from asdjax.frontend.fbank import LOG_FLOOR

    def window_and_filters() -> tuple[torch.Tensor, torch.Tensor]:
        def mel(hz: torch.Tensor) -> torch.Tensor:
            return 1127 * (1 + hz / 700).log()

        low, high = mel(torch.tensor([20.0, 8000.0]))
        corner = low + torch.arange(130)[:, None] * (high - low) / 129
        bins = mel(31.25 * torch.arange(256))[None]
        rise = (bins - corner[:-2]) / (corner[1:-1] - corner[:-2])
        fall = (corner[2:] - bins) / (corner[2:] - corner[1:-1])
        triangles = torch.minimum(rise, fall).clamp_min(0).T.contiguous()
        return torch.hann_window(400, periodic=False).pow(0.85), triangles

    kept = window_and_filters()

    def one(wave: torch.Tensor) -> torch.Tensor:
        taper, bank = kept if keep_filters else window_and_filters()
        frames = (wave * 32768).unfold(0, 400, 160)
        frames = frames - frames.mean(1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
        spectrum = torch.fft.rfft((frames - 0.97 * before) * taper, 512)
        power = spectrum.abs().square()
        return (power[:, :-1] @ bank).clamp_min(LOG_FLOOR).log()

    clips = torch.from_numpy(waves())
    return lambda: torch.stack([one(wave) for wave in clips]).numpy()


def beats_input() -> tuple:
    """Return the configuration, random weights and a normalized log-mel `[8, 998, 128]`."""
    from asdjax.models.backbone import initialize
    from asdjax.models.beats import BeatsConfig

    config = BeatsConfig.base()
    mel = np.random.default_rng(0).standard_normal((8, 998, 128)).astype(np.float32) * 0.5
    return config, initialize(config), mel


def forward_ours(given: Callable[[], tuple]) -> Call:
    import jax

    from asdjax.models.backbone import abstract
    from asdjax.models.weights_file import merge

    config, params, mel = given()
    graph, _ = abstract(config)
    forward = jax.jit(lambda params, mel: merge(graph, params)(mel))
    return lambda: np.asarray(forward(params, mel))


def forward_torch(given: Callable[[], tuple], make: Callable) -> Call:
    """Return the forward pass of what `make(config, params, device)` gives."""
    import torch

    config, params, mel = given()
    device = "cuda" if GPU else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True  # as JAX does by default
    forward = make(config, {n: np.asarray(value) for n, value in params.items()}, device)
    mel = torch.from_numpy(mel).to(device)
    return torch.inference_mode()(lambda: forward(mel).cpu().numpy())


def beats_torch() -> Call:
    from torch_beats import torch_beats

    return forward_torch(beats_input, torch_beats)


def eat_input() -> tuple:
    """Return the configuration, random weights and a normalized log-mel `[8, 1024, 128]`."""
    from asdjax.models.backbone import initialize
    from asdjax.models.eat import EatConfig

    config = EatConfig.base()
    mel = np.random.default_rng(0).standard_normal((8, 1024, 128)).astype(np.float32) * 0.5
    return config, initialize(config), mel


def eat_torch() -> Call:
    from torch_eat import torch_eat

    return forward_torch(eat_input, torch_eat)


def unit_rows(groups: int, rows: int, seed: int) -> np.ndarray:
    """Return `[groups, rows, 768]` float32 rows of length 1."""
    x = np.random.default_rng(seed).standard_normal((groups, rows, 768), dtype=np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def knn_ours(groups: int, queries: int, references: int) -> Call:
    from asdjax.scoring.knn import knn_scores

    query, bank = list(unit_rows(groups, queries, 0)), list(unit_rows(groups, references, 1))
    return lambda: np.stack(knn_scores(query, bank))


def knn_scikit_learn(groups: int, queries: int, references: int) -> Call:
    from sklearn.neighbors import NearestNeighbors

    query, bank = unit_rows(groups, queries, 0), unit_rows(groups, references, 1)

    def one(query: np.ndarray, bank: np.ndarray) -> np.ndarray:
        search = NearestNeighbors(n_neighbors=1, algorithm="brute", metric="cosine").fit(bank)
        return search.kneighbors(query)[0][:, 0]

    return lambda: np.stack([one(q, b) for q, b in zip(query, bank, strict=True)])


def knn_faiss(groups: int, queries: int, references: int) -> Call:
    """Build the flat inner-product index and search it, as a scorer that gets arrays has to."""
    import faiss

    query, bank = unit_rows(groups, queries, 0), unit_rows(groups, references, 1)

    def one(query: np.ndarray, bank: np.ndarray) -> np.ndarray:
        index = faiss.IndexFlatIP(bank.shape[1])
        index.add(bank)
        return 1 - index.search(query, 1)[0][:, 0]

    return lambda: np.stack([one(q, b) for q, b in zip(query, bank, strict=True)])


def finetune_ours(kind: str, *backbones: str) -> Call:
    """Return a step of one system, which has an encoder for each of the backbones."""
    from finetune import STRUCTURES, step

    one = step(kind, [STRUCTURES[name] for name in backbones], BATCH, DTYPE, EAT_ATTENTION)
    return lambda: np.array(one())


def finetune_in_turn(kind: str, *backbones: str) -> Call:
    """Return a step of each of the systems that have one of the backbones, one after the other."""
    each = [finetune_ours(kind, name) for name in backbones]
    return lambda: np.stack([one() for one in each])


def finetune_torch(kind: str, backbone: str, compiled: bool) -> Call:
    from finetune import STRUCTURES
    from torch_finetune import step

    one = step(kind, STRUCTURES[backbone], compiled, BATCH, "cuda" if GPU else "cpu")
    return lambda: np.array(one())


def finetune_sides(kind: str, backbone: str) -> dict[str, Callable[[], Call]]:
    return {
        "ours": lambda: finetune_ours(kind, backbone),
        "torch": lambda: finetune_torch(kind, backbone, compiled=False),
        "torch.compile": lambda: finetune_torch(kind, backbone, compiled=True),
    }


def spectral_ours() -> Call:
    from spectral import step

    one = step(SPECTRAL_BATCH)
    return lambda: np.array(one())


def spectral_torch(compiled: bool) -> Call:
    from torch_spectral import step

    one = step(compiled, SPECTRAL_BATCH, "cuda" if GPU else "cpu")
    return lambda: np.array(one())


GPU = shutil.which("nvidia-smi") is not None
BATCH, DTYPE = (32, "bfloat16") if GPU else (4, "float32")
EAT_ATTENTION = os.environ.get("EAT_ATTENTION", "auto")  # `--attention` of compare.py
STEP = f"step, {BATCH} x 10 s, {DTYPE}"
SPECTRAL_BATCH = 64  # as in training
SPECTRAL_STEP = f"spectral branches with CBAM step, {SPECTRAL_BATCH} x 10 s"
SMALL, LARGE = (7, 200, 1_000), (1, 2_000, 200_000)
CASES: dict[str, dict[str, Callable[[], Call]]] = {
    "fbank 32 x 10 s": {
        "ours": fbank_ours,
        "torch loop": lambda: fbank_torch_loop(keep_filters=False),
        "torch loop, tuned": lambda: fbank_torch_loop(keep_filters=True),
        "kaldi-native-fbank": fbank_kaldi_native_fbank,
    },
    "BEATs-base forward, 8 x 10 s, float32": {
        "ours": lambda: forward_ours(beats_input),
        "torch": beats_torch,
    },
    "EAT-base forward, 8 x 10 s, float32": {
        "ours": lambda: forward_ours(eat_input),
        "torch": eat_torch,
    },
    f"BEATs-base LoRA {STEP}": finetune_sides("lora", "beats"),
    f"BEATs-base full {STEP}": finetune_sides("full", "beats"),
    f"EAT-base LoRA {STEP}": finetune_sides("lora", "eat"),
    f"EAT-base full {STEP}": finetune_sides("full", "eat"),
    f"dual LoRA {STEP}": {
        "ours": lambda: finetune_ours("lora", "beats", "eat"),
        "ours, one by one": lambda: finetune_in_turn("lora", "beats", "eat"),
    },
    SPECTRAL_STEP: {
        "ours": spectral_ours,
        "torch": lambda: spectral_torch(compiled=False),
        "torch.compile": lambda: spectral_torch(compiled=True),
    },
    "kNN 7 x 200 x 1,000 x 768": {
        "ours": lambda: knn_ours(*SMALL),
        "scikit-learn": lambda: knn_scikit_learn(*SMALL),
        "faiss": lambda: knn_faiss(*SMALL),
    },
    "kNN 2,000 x 200,000 x 768": {
        "ours": lambda: knn_ours(*LARGE),
        "scikit-learn": lambda: knn_scikit_learn(*LARGE),
        "faiss": lambda: knn_faiss(*LARGE),
    },
}


def describe() -> dict:
    """Return the versions of what was imported, and the device if there is JAX."""
    names = ("jax", "torch", "faiss", "sklearn", "kaldi_native_fbank", "numpy")
    found = {name: sys.modules[name] for name in names if name in sys.modules}
    described = {name: getattr(module, "__version__", "") for name, module in found.items()}
    if "jax" in found:
        described["device"] = found["jax"].devices()[0].device_kind
        described["eat_attention"] = EAT_ATTENTION
    return described


def peak_memory() -> int:
    """Return the most bytes held so far on the GPU, else (on Linux) by this process.

    A process of PyTorch that takes its weights from ours holds jax as well.
    """
    if GPU and "torch" in sys.modules:
        return sys.modules["torch"].cuda.max_memory_allocated()
    if GPU and "jax" in sys.modules:
        return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(case: str, side: str, output: str) -> None:
    call = CASES[case][side]()
    start = time.perf_counter()
    np.save(output, call())
    print(json.dumps({"first_call_s": time.perf_counter() - start, **describe()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_memory()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
