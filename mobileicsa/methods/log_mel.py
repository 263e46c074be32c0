"""Log-mel pictures of short clips: Hann windows, triangles on the mel scale, mean 0 and deviation 1."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mobileicsa.core.errors import InputError

LOWEST_HZ = 60.0
FLOOR = 1e-6

Picture = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Mel:
    """`rate` in Hz, `window` and `hop` in samples; pictures are (mels, frames)."""

    rate: int
    mels: int
    frames: int
    window: int
    hop: int


def log_mel(samples: Picture, mel: Mel) -> Picture:
    """(n,) samples in [-1, 1] to (mels, frames), cut or padded with silence at the end."""
    length = mel.window + mel.hop * (mel.frames - 1)
    padded = np.pad(samples[:length], (0, max(0, length - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, mel.window)[:: mel.hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(mel.window), axis=1)) ** 2
    loud = np.log(power @ _filters(mel).T + FLOOR)
    normal = (loud - loud.mean()) / (loud.std() + FLOOR)
    picture: Picture = np.ascontiguousarray(normal.T.astype(np.float32))
    return picture


def read_wav(data: bytes, rate: int, where: str) -> Picture:
    """Samples in [-1, 1] of a mono 16-bit WAV file; InputError naming `where` for any other."""
    try:
        with wave.open(io.BytesIO(data)) as clip:
            form = (clip.getframerate(), clip.getnchannels(), clip.getsampwidth())
            if form != (rate, 1, 2):
                raise InputError(f"{where}: (rate, channels, bytes) {form}, expected {(rate, 1, 2)}")
            return np.frombuffer(clip.readframes(clip.getnframes()), "<i2").astype(np.float32) / np.float32(32768)
    except (wave.Error, EOFError) as error:
        raise InputError(f"{where}: not a WAV file: {error}") from error


@lru_cache(maxsize=2)
def _filters(mel: Mel) -> NDArray[np.float64]:
    """(mels, bins)."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, mel.rate / 2))
    centers = 700 * (10 ** (np.linspace(low, high, mel.mels + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(mel.window, 1 / mel.rate)
    rising = (bins - centers[:-2, None]) / (centers[1:-1] - centers[:-2])[:, None]
    falling = (centers[2:, None] - bins) / (centers[2:] - centers[1:-1])[:, None]
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters
