"""Sound that a voice detector takes for speech (vowels between bursts of noise), and near silence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
N_FRAME = 512  # samples per decision at 16 kHz. Source: silero_vad/model.py
N_CONTEXT = 64  # samples of the frame before, put in front. Source: silero_vad/model.py

# First three formants in Hz of five vowels, men. Source: G. Peterson and H. Barney, "Control Methods Used in
# a Study of the Vowels", JASA 24 (1952), table II.
FORMANTS_HZ = (
    (270, 2290, 3010),
    (530, 1840, 2480),
    (660, 1720, 2410),
    (730, 1090, 2440),
    (300, 870, 2240),
)


def silence(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Noise 80 dB below full scale: float32[samples]."""
    noise = np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ))
    return np.asarray(noise * 1e-4, np.float32)


def speech(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Babble of syllables, peak 0.3: float32[samples] in -1..1."""
    rng = np.random.default_rng(seed)
    n_wanted = int(seconds * RATE_HZ)
    parts: list[NDArray[np.float64]] = []
    while sum(map(len, parts)) < n_wanted:
        parts.append(_consonant(int(rng.uniform(0.04, 0.08) * RATE_HZ), rng))
        parts.append(_vowel(int(rng.uniform(0.12, 0.25) * RATE_HZ), rng))
    sound = np.concatenate(parts)[:n_wanted]
    return np.asarray(0.3 * sound / np.abs(sound).max(), np.float32)


def frames(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[samples] -> float32[frames, 576]: 512 samples each, the 64 before them in front."""
    padded = np.concatenate([np.zeros(N_CONTEXT, np.float32), sound])
    starts = range(0, len(sound) - N_FRAME + 1, N_FRAME)
    return np.stack([padded[start : start + N_CONTEXT + N_FRAME] for start in starts])


def _consonant(n_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.diff(rng.standard_normal(n_samples + 1)) * 0.15 * np.hanning(n_samples)


def _vowel(n_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Harmonics of a gliding voice of 100 to 140 Hz, falling 6 dB an octave, raised near the formants."""
    formants_hz = FORMANTS_HZ[rng.integers(len(FORMANTS_HZ))]
    start_hz = rng.uniform(100, 140)
    pitch_hz = np.linspace(start_hz, start_hz * rng.uniform(0.85, 1.1), n_samples)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    sound = np.zeros(n_samples)
    for harmonic in range(1, 40):
        centre_hz = harmonic * pitch_hz.mean()
        near = [
            gain / (1 + ((centre_hz - f) / 60) ** 2)
            for f, gain in zip(formants_hz, (1, 0.7, 0.4), strict=True)
        ]
        sound += (0.06 + sum(near)) / harmonic * np.sin(harmonic * phase)
    ramp = np.arange(n_samples) / (0.02 * RATE_HZ)
    return sound * np.minimum(1, np.minimum(ramp, ramp[::-1]))
