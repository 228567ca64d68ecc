"""Sketches of long vectors that keep their inner products (CountSketch; Charikar, Chen & Farach-Colton 2002).

Every coordinate is added, with a random sign σ, to one of k places,

    S(v)_p = Σ_{i at p} σ_i·v_i,   E⟨S(v), S(w)⟩ = ⟨v, w⟩,   Var⟨S(v), S(w)⟩ ≤ (|v|²·|w|² + ⟨v, w⟩²)/k.

Places are those of blocks of k coordinates, each shifted by a random number around a circle: two coordinates meet with
probability 1/k or less, and a sketch is a few additions of long slices, the same bits on every device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from bif_lightning.rng import stream_seed

_KEY = -5  # of signs and shifts


@dataclass(frozen=True)
class CountSketch:
    """S, from vectors of d numbers to k.

    Attributes:
        size: k.
        signs: σ, on the device of the vectors.
        shifts: of the blocks.

    >>> sketch = CountSketch.of(torch.zeros(1000), 100)
    >>> sketch(torch.randn(3, 1000)).shape
    torch.Size([3, 100])
    """

    size: int
    signs: Int8[Tensor, " weight"]
    shifts: tuple[int, ...]

    @classmethod
    def of(cls, like: Float[Tensor, " weight"], size: int, seed: int = 0) -> "CountSketch":
        """Sketches of `size` numbers of vectors like this one."""
        generator = torch.Generator().manual_seed(stream_seed(seed, _KEY))
        signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8, device="cpu") * 2 - 1
        shifts = torch.randint(0, size, (-(-len(like) // size),), generator=generator, device="cpu")
        return cls(size, signs.to(like.device), tuple(shifts.tolist()))

    def __call__(self, vectors: Float[Tensor, "vector weight"]) -> Float[Tensor, "vector place"]:
        """S of each row."""
        out = vectors.new_zeros(len(vectors), self.size)
        for block, shift in enumerate(self.shifts):
            own = slice(block * self.size, (block + 1) * self.size)
            piece = vectors[:, own] * self.signs[own]
            ahead, around = piece[:, : self.size - shift], piece[:, self.size - shift :]
            out[:, shift : shift + ahead.shape[1]] += ahead
            out[:, : around.shape[1]] += around
        return out
