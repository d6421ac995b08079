#!/usr/bin/env bash
# kaldi-native-fbank 1.23.0 refuses the 128 mel bands at 16 kHz that 1.22.5 computed.
#
# Versions: kaldi-native-fbank 1.22.5 and 1.23.0, numpy 2.4.6, Python 3.11.
# Input: one second of noise at 16 kHz; 25 ms frames, 10 ms hop, 128 bands from 20 Hz: the filter
#   bank of AST, BEATs and EAT. Its lowest bands are narrower than a bin of the 512-point FFT, so one
#   of them has no bin.
# Expected: `[98, 128]` from both, the empty band at the logarithm's floor, as Kaldi's.
# Seen: 1.22.5 gives that; 1.23.0 raises "You may have set num_mel_bins too large.", and still takes
#   124 bands. No option of it allows an empty band.
# Exits with 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/bands.py" <<'PYTHON'
import sys

import kaldi_native_fbank
import numpy as np


def bands(count):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = 16_000
    options.mel_opts.num_bins = count
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(16_000, np.random.default_rng(0).standard_normal(16_000).astype("f4"))
    bank.input_finished()
    return np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])


refuses = sys.argv[1] == "refuses"
print("124 bands:", bands(124).shape)
try:
    x = bands(128)
    empty = int((np.ptp(x, axis=0) == 0).sum())
    print("128 bands:", x.shape, "of which always the same:", empty, x.min())
    sys.exit(refuses or x.shape != (98, 128) or empty != 1)
except ValueError as error:
    print("128 bands:", error)
    sys.exit(not refuses)
PYTHON
for one in "1.22.5 computes" "1.23.0 refuses"; do
  read -r version what <<< "$one"
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q "kaldi-native-fbank==$version" "numpy==2.4.6"
  echo "kaldi-native-fbank $version:"
  "$folder/$version/bin/python" "$folder/bands.py" "$what"
done
