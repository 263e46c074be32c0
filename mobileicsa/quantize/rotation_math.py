"""Orthogonal matrices that spread every channel over all others: pure tensor maths of the offline rotations.

A Hadamard matrix exists for powers of two; n = 2**k * m gets one of size 2**k times a random orthogonal one of size m
(Kronecker product), its rows' signs drawn at random (QuaRot, arXiv 2404.00456).
"""

from __future__ import annotations

import torch
from torch import Tensor


def hadamard(size: int) -> Tensor:
    """Orthogonal Hadamard matrix (size, size) float64, entries +-size**-0.5; `size` is a power of two."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"hadamard: {size} is not a power of two")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    normalized: Tensor = matrix / size**0.5
    return normalized


def random_hadamard(size: int, seed: int = 0) -> Tensor:
    """Orthogonal matrix (size, size) float64 for any size; equal seeds give equal matrices."""
    power = size & -size
    rest = size // power
    random = torch.Generator().manual_seed(seed)
    orthogonal, triangle = torch.linalg.qr(torch.randn(rest, rest, generator=random, dtype=torch.float64))
    # The signs of QR's result depend on the library: those of a positive diagonal do not.
    orthogonal = (orthogonal * triangle.diagonal().sign()).contiguous()
    signs = torch.randint(0, 2, (size, 1), generator=random, dtype=torch.float64) * 2 - 1
    return signs * torch.kron(orthogonal, hadamard(power))
