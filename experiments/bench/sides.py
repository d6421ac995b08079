"""One side of one benchmark, in a process of its own; `run.py` starts and drives it.

    python experiments/bench/sides.py SUITE CASE SIDE OUTPUT.npy

makes the input (the same for every side), runs once to compile and warm up, stores the result in
OUTPUT.npy, prints a line that describes itself, and then, for every line it reads, prints the
seconds of one more call. Only this file knows how a side is computed.

What limits: fbank the FFT and the copies around it; BEATs, EAT, their training and large kNN the
matrix products; small kNN the calls; the autoencoders on CPUs their products (0.37 GFLOP a step:
267,928 weights, 256 vectors, forward and back but to the input), on GPUs the launches of small
kernels; from files to scores start-up, reading and the networks in turn.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from finetune import BEATS, EAT, HUBERT, LORA

from asdjax.arithmetic import BFLOAT16_UNITS, processor_flags

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


def forward_ours(given: Callable[[], tuple], dtype: str) -> Call:
    import jax

    from asdjax.models.backbone import abstract
    from asdjax.models.weights_file import merge

    config, params, mel = given()
    graph, _ = abstract(config, dtype=dtype)
    forward = jax.jit(lambda params, mel: merge(graph, params)(mel))
    return lambda: np.asarray(forward(params, mel))


def forward_torch(given: Callable[[], tuple], make: Callable[[], Callable], dtype: str) -> Call:
    """Return the forward pass of what `make()(config, params, device)` gives."""
    import torch

    config, params, mel = given()
    torch.backends.cuda.matmul.allow_tf32 = True  # as JAX does by default
    forward = make()(config, {n: np.asarray(value) for n, value in params.items()}, DEVICE)
    mel = torch.from_numpy(mel).to(DEVICE)

    def run() -> np.ndarray:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            return forward(mel).float().cpu().numpy()

    return torch.inference_mode()(run)


def beats_torch() -> Callable:
    from torch_beats import torch_beats

    return torch_beats


def eat_input() -> tuple:
    """Return the configuration, random weights and a normalized log-mel `[8, 1024, 128]`."""
    from asdjax.models.backbone import initialize
    from asdjax.models.eat import EatConfig

    config = EatConfig.base()
    mel = np.random.default_rng(0).standard_normal((8, 1024, 128)).astype(np.float32) * 0.5
    return config, initialize(config), mel


def eat_torch() -> Callable:
    from torch_eat import torch_eat

    return torch_eat


def hubert_input() -> tuple:
    """Return the configuration, random weights and a normalized wave `[8, 160000, 1]`."""
    from asdjax.models.backbone import initialize
    from asdjax.models.speech import SpeechConfig

    config = SpeechConfig.base()
    return config, initialize(config), np.asarray(config.frontend(waves()[:8]))


def hubert_torch() -> Callable:
    from torch_speech import torch_speech

    return torch_speech


def mn04_input() -> tuple:
    """Return the configuration, random weights and a normalized log-mel `[8, 1000, 128]`.

    Kernels are drawn so that every layer keeps the size of its values.
    """
    from asdjax.models.backbone import initialize
    from asdjax.models.efficientat import EfficientATConfig

    config, rng = EfficientATConfig(width_mult=0.4, num_classes=0), np.random.default_rng(0)
    params = {name: np.asarray(value) for name, value in initialize(config).items()}
    for name, value in params.items():
        if name.endswith("kernel"):
            inputs = value.shape[0] if value.ndim == 2 else value.shape[0] ** 2
            drawn = (2 / inputs) ** 0.5 * rng.standard_normal(value.shape)
            params[name] = drawn.astype(np.float32)
    return config, params, np.asarray(config.frontend(waves()[:8]))


def mn04_torch() -> Callable:
    from torch_efficientat import torch_efficientat

    return torch_efficientat


def convolutions_ours() -> Call:
    """Return the convolutional encoder of HuBERT alone."""
    import jax

    from asdjax.models.backbone import abstract
    from asdjax.models.weights_file import merge

    config, params, wave = hubert_input()
    graph = abstract(config)[0]
    forward = jax.jit(lambda params, wave: merge(graph, params).frames(wave))
    return lambda: np.asarray(forward(params, wave))


def convolutions_torch() -> Call:
    import torch
    from torch_speech import torch_speech

    config, params, wave = hubert_input()
    model = torch_speech(config, {n: np.asarray(x) for n, x in params.items()}, DEVICE)
    wave = torch.from_numpy(wave[..., 0]).to(DEVICE)
    return torch.inference_mode()(lambda: model.model.feature_extractor(wave).mT.cpu().numpy())


def layer_products() -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Return the dense products of a layer of base size: rows, kernel, whether it is transposed.

    They are q, k, v, out and the two of the feed-forward network, and the same back to the inputs.
    """
    rng = np.random.default_rng(0)
    narrow, wide = (rng.standard_normal((TOKENS, n), np.float32) for n in (WIDTH, 4 * WIDTH))
    square, up = (rng.standard_normal((WIDTH, n), np.float32) for n in (WIDTH, 4 * WIDTH))
    down = np.ascontiguousarray(up.T)
    forward = [(narrow, square, False)] * 4 + [(narrow, up, False), (wide, down, False)]
    return forward + [(narrow, square, True)] * 4 + [(wide, up, True), (narrow, down, True)]


def products_ours() -> Call:
    import jax

    given = [(*jax.device_put((rows, kernel)), back) for rows, kernel, back in layer_products()]
    forward, backward = jax.jit(lambda x, w: x @ w), jax.jit(lambda x, w: x @ w.T)

    def run() -> np.ndarray:
        found = [(backward if back else forward)(rows, kernel) for rows, kernel, back in given]
        return corners(jax.block_until_ready(found))

    return run


def products_torch() -> Call:
    import torch

    given = [(*map(torch.from_numpy, pair), back) for *pair, back in layer_products()]
    return lambda: corners([x @ (w.T if back else w) for x, w, back in given])


def corners(products: list) -> np.ndarray:
    """Return a part of each product, enough to compare them."""
    return np.stack([np.asarray(one[:16, :16]) for one in products])


def unit_rows(groups: int, rows: int, seed: int) -> np.ndarray:
    """Return `[groups, rows, 768]` float32 rows of length 1."""
    x = np.random.default_rng(seed).standard_normal((groups, rows, 768), dtype=np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def near_alone() -> Call:
    from asdjax.frontend import two_channel

    wave = np.stack([waves(), waves()[::-1]], -1)
    return lambda: np.asarray(two_channel.near_alone(wave))


def scoring(name: str, *given: int) -> Call:
    import search

    return getattr(search, name)(*given)


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


def finetune_ours(kind: str, backbones: tuple[str, ...], batch: int, dtype: str) -> Call:
    """Return a step of one system, which has an encoder for each of the backbones."""
    from finetune import STRUCTURES, step

    one = step(kind, [STRUCTURES[name] for name in backbones], batch, dtype, EAT_ATTENTION)
    return lambda: np.array(one())


def finetune_in_turn(kind: str, backbones: tuple[str, ...], batch: int, dtype: str) -> Call:
    """Return a step of each of the systems that have one of the backbones, one after the other."""
    each = [finetune_ours(kind, (name,), batch, dtype) for name in backbones]
    return lambda: np.stack([one() for one in each])


def finetune_torch(kind: str, backbone: str, batch: int, dtype: str, compiled: bool) -> Call:
    from finetune import STRUCTURES
    from torch_finetune import step

    one = step(kind, STRUCTURES[backbone], compiled, batch, DEVICE, dtype)
    return lambda: np.array(one())


def spectral_ours() -> Call:
    from spectral import step

    one = step(SPECTRAL_BATCH)
    return lambda: np.array(one())


def spectral_torch(compiled: bool) -> Call:
    from torch_spectral import step

    one = step(compiled, SPECTRAL_BATCH, DEVICE)
    return lambda: np.array(one())


def autoencoders_ours(at_once: bool) -> Call:
    from autoencoders import train

    one = train(MACHINES, STEPS, at_once)
    return lambda: np.array(one())


def autoencoders_torch() -> Call:
    from torch_autoencoder import train

    one = train(MACHINES, STEPS, DEVICE)
    return lambda: np.array(one())


def pipeline(kind: str, peer: bool) -> Call:
    """Return a run from wav files to results by a command of its own."""
    from pipelines import command

    run = command(kind, peer)
    return lambda: np.array(run())


SUITES = "cpu", "gpu"
KERNELS = "auto", "plain", "cudnn"
SUITE = sys.argv[1] if sys.argv[1:2] and sys.argv[1] in SUITES else ""  # none in `run.py`
DEVICE = "cuda" if SUITE == "gpu" else "cpu"
EAT_ATTENTION = os.environ.get("EAT_ATTENTION", "auto")  # `--attention` of run.py
SPECTRAL_BATCH = 64  # as in training
MACHINES, STEPS = 7, 40  # of autoencoders
TOKENS, WIDTH = 2_052, 768  # of 4 clips of 10 s in EAT-base
SMALL, LARGE = (7, 200, 1_000), (1, 2_000, 200_000)


def absent_units(case: str) -> str:
    """Return why a case is left out here; "" if it is not."""
    if not case.endswith(ON_UNITS) or processor_flags() & BFLOAT16_UNITS:
        return ""
    return "this processor has no units for bfloat16"


ON_UNITS = "bfloat16 on a CPU"
Sides = dict[str, Callable[[], Call]]


def finetune_sides(kind: str, backbone: str, batch: int, dtype: str, peer: str) -> Sides:
    """Return the sides of a step: ours in `dtype`, PyTorch's in `peer`."""
    theirs = partial(finetune_torch, kind, backbone, batch, peer)
    name = "torch" if dtype == peer else f"torch {peer}"
    return {
        "ours": partial(finetune_ours, kind, (backbone,), batch, dtype),
        name: partial(theirs, compiled=False),
        f"{name}, compiled": partial(theirs, compiled=True),
    }


def forward_sides(given: Callable, make: Callable, dtype: str, peers: tuple[str, ...]) -> Sides:
    sides: Sides = {"ours": partial(forward_ours, given, dtype)}
    return sides | {f"torch {peer}": partial(forward_torch, given, make, peer) for peer in peers}


def knn_sides(size: tuple[int, int, int]) -> Sides:
    return {
        "ours": partial(knn_ours, *size),
        "scikit-learn": partial(knn_scikit_learn, *size),
        "faiss": partial(knn_faiss, *size),
    }


ALIKE: dict[str, Sides] = {  # on both
    "fbank 32 x 10 s": {
        "ours": fbank_ours,
        "torch loop": partial(fbank_torch_loop, keep_filters=False),
        "torch loop, tuned": partial(fbank_torch_loop, keep_filters=True),
        "kaldi-native-fbank": fbank_kaldi_native_fbank,
    },
    f"spectral branches with CBAM step, {SPECTRAL_BATCH} x 10 s": {
        "ours": spectral_ours,
        "torch": partial(spectral_torch, compiled=False),
        "torch, compiled": partial(spectral_torch, compiled=True),
    },
    f"{MACHINES} autoencoders, {STEPS} steps of 256 vectors": {
        "ours": partial(autoencoders_ours, at_once=True),
        "ours, one by one": partial(autoencoders_ours, at_once=False),
        "torch, one by one": autoencoders_torch,
    },
    "EfficientAT mn04 embedding, 8 x 10 s": forward_sides(
        mn04_input, mn04_torch, "float32", ("float32",)
    ),
    "convolutions of HuBERT-base, 8 x 10 s": {
        "ours": convolutions_ours,
        "transformers": convolutions_torch,
    },
    "near without far, 32 x 10 s": {"ours": near_alone, "log-mel of one": fbank_ours},
    "7 normalizations, 7 x (1,000 + 200) x 768": {
        "ours": partial(scoring, "normalized", 7),
        "ours, nearest alone": partial(scoring, "nearest", 7),
    },
    "search in 87 ways, 1 x (1,000 + 200) x 8 x 768": {
        "ours": partial(scoring, "ours", 1, 1),
        "numpy and scikit-learn": partial(scoring, "one_by_one", 1, 1),
    },
    "kNN 7 x 200 x 1,000 x 768": knn_sides(SMALL),
    "kNN 2,000 x 200,000 x 768": knn_sides(LARGE),
}
PRODUCTS = f"dense products of a layer, {TOKENS:,} tokens, float32"
DENSE: dict[str, Sides] = {PRODUCTS: {"ours": products_ours, "torch": products_torch}}
FILES = {  # from wav files to scores, by commands of their own
    f"files to scores, 1,050 x 10 s, {name}": {
        "ours": partial(pipeline, kind, peer=False),
        "public code": partial(pipeline, kind, peer=True),
    }
    for kind, name in (
        ("frozen", "frozen BEATs of 4 layers"),
        ("lora", "its LoRA, 100 steps of 8"),
        ("small", "small/dual"),
    )
}
GFLOP = {  # of the matrix products of one call; a LoRA step needs no gradient of frozen weights
    PRODUCTS: 2 * 2e-9 * TOKENS * 12 * WIDTH**2,
    f"{MACHINES} autoencoders, {STEPS} steps of 256 vectors": MACHINES * STEPS * 0.369,
    "kNN 7 x 200 x 1,000 x 768": 2e-9 * 7 * 200 * 1_000 * 768,
    "kNN 2,000 x 200,000 x 768": 2e-9 * 2_000 * 200_000 * 768,
}


def backbones(batch: int, dtype: str, where: str, peers: tuple[str, ...]) -> dict[str, Sides]:
    """Return the cases of BEATs and EAT, and what they have to compute.

    Args:
      where: the end of each name.
      peers: types of PyTorch's products.
    """
    found: dict[str, Sides] = {}
    flop = {"BEATs": BEATS[0], "EAT": EAT[0], "HuBERT": HUBERT[0]}
    inputs = {"BEATs": (beats_input, beats_torch), "EAT": (eat_input, eat_torch)}
    inputs["HuBERT"] = hubert_input, hubert_torch
    for name in flop:
        case = f"{name}-base embedding, 8 x 10 s, {where}"
        found[case], GFLOP[case] = forward_sides(*inputs[name], dtype, peers), 8 * flop[name]
    for name in flop:
        for kind, needed in (("LoRA", LORA[name]), ("full", 3 * flop[name])):
            case = f"{name}-base {kind} step, {batch} x 10 s, {where}"
            sides = [finetune_sides(kind.lower(), name.lower(), batch, dtype, p) for p in peers]
            found[case] = {
                side: call
                for one in sides
                for side, call in one.items()
                if not (name == "HuBERT" and "compiled" in side)  # transformers: many minutes
            }
            GFLOP[case] = batch * needed
    both = f"dual LoRA step, {batch} x 10 s, {where}"
    given = "lora", ("beats", "eat"), batch, dtype
    found[both] = {
        "ours": partial(finetune_ours, *given),
        "ours, one by one": partial(finetune_in_turn, *given),
    }
    GFLOP[both] = batch * (LORA["BEATs"] + LORA["EAT"])
    return found


CASES: dict[str, dict[str, Sides]] = {
    "cpu": backbones(4, "float32", "float32", ("float32",))
    | backbones(4, "bfloat16", ON_UNITS, ("float32", "bfloat16"))
    | DENSE
    | ALIKE
    | FILES,
    "gpu": backbones(32, "bfloat16", "bfloat16", ("bfloat16",)) | ALIKE | FILES,
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
    if SUITE == "gpu" and "torch" in sys.modules:
        return sys.modules["torch"].cuda.max_memory_allocated()
    if SUITE == "gpu" and "jax" in sys.modules:
        return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(suite: str, case: str, side: str, output: str) -> None:
    try:
        call = CASES[suite][case][side]()
    except ModuleNotFoundError as error:
        print(json.dumps({"absent": error.name}), flush=True)
        return
    start = time.perf_counter()
    np.save(output, call())  # compiles and warms up
    print(json.dumps({"first_call_s": time.perf_counter() - start, **describe()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_memory()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
