"""The losses of tokens at every draw of this process's chains: in memory, or beyond a budget in a temporary file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.token_losses import TokenValues
from bif_lightning.results.token_matrices import MOST_BYTES
from bif_lightning.storage.scratch import ScratchArrays, Spec

_WHAT = "the losses of tokens"


class TokenStore:
    """Changes of token losses, l(w) − l(w*), at every draw of some chains.

    The change is stored and not the loss: a covariance needs no more, and what is left of it after rounding, here and
    in a dump, is far finer.

    Args:
        train, query: losses at the snapshot; the same object where the two sets are one.
        chains: which.
        num_draws: of each.
        budget: bytes that they may take in memory.
        scratch: folder of the temporary file; None for the default of `tempfile`.

    Raises:
        OSError: there is no room for the file.
    """

    def __init__(
        self,
        train: TokenValues,
        query: TokenValues,
        chains: Sequence[int],
        num_draws: int,
        *,
        budget: int = MOST_BYTES,
        scratch: Path | None = None,
    ) -> None:
        self.train, self.query = train, query
        self.chains, self.num_draws = tuple(chains), num_draws
        self._sides = (train,) if query is train else (train, query)
        self._first = {chain: place * num_draws for place, chain in enumerate(self.chains)}
        draws = num_draws * len(self.chains)
        specs = [Spec((draws, len(side.values)), _dtype(side)) for side in self._sides]
        self._storage = ScratchArrays(specs, budget, scratch, what=_WHAT)

    def push(self, chain: int, draw: int, train: TokenValues, query: TokenValues) -> None:
        """Take in one draw.

        Raises:
            ValueError: other tokens have a loss than at the snapshot.
            OSError: the disk is full, or failed.
        """
        row = self._first[chain] + draw
        for place, (side, here) in enumerate(zip(self._sides, (train, query), strict=False)):
            side.check_same(here)
            change = (here.values - side.values).cpu().numpy()
            self._storage.write(place, slice(row, row + 1), change[None])

    def put(self, chain: int, changes: Sequence[np.ndarray]) -> None:
        """Take in all draws of one chain, as `of` gives them."""
        for place, change in enumerate(changes):
            self._storage.write(place, self._rows(chain), change)

    def of(self, chain: int) -> list[Float[np.ndarray, "draw token"]]:
        """What is stored of one chain: of the train tokens, then of the query tokens where they are others."""
        return [array[self._rows(chain)] for array in self._storage.arrays]

    def changes(self) -> tuple[Float[np.ndarray, "chain draw train"], Float[np.ndarray, "chain draw query"]]:
        """What is stored of all chains."""
        sides = [array.reshape(len(self.chains), self.num_draws, -1) for array in self._storage.arrays]
        return sides[0], sides[-1]

    def close(self) -> None:
        """All draws are in."""
        self._storage.close()

    def _rows(self, chain: int) -> slice:
        return slice(self._first[chain], self._first[chain] + self.num_draws)


def gathered(
    store: TokenStore, chains: Sequence[int], ranks: Ranks, *, everywhere: bool, scratch: Path | None
) -> TokenStore | None:
    """What all ranks have stored of these chains, on rank 0 or everywhere; None elsewhere. Collective."""
    kept = everywhere or ranks.rank == 0
    if (ranks.world_size == 1 or ranks.lockstep) and tuple(chains) == store.chains:
        store.close()
        return store if kept else None
    with ranks.collective(_WHAT):
        whole = TokenStore(store.train, store.query, chains, store.num_draws, scratch=scratch) if kept else None
    for chain in chains:  # one at a time: all of them may be more than memory holds
        parts = ranks.gather(store.of(chain) if chain in store.chains else None)
        if everywhere:
            parts = ranks.broadcast(parts)
        with ranks.collective(_WHAT):
            for part in parts or ():
                if whole and part is not None:
                    whole.put(chain, part)
    store.close()
    if whole:
        whole.close()
    return whole


def token_bytes(train: TokenValues, query: TokenValues, chains: int, num_draws: int) -> int:
    """Memory of the losses of all tokens at all draws."""
    sides = (train,) if query is train else (train, query)
    return sum(chains * num_draws * len(side.values) * side.values.element_size() for side in sides)


def _dtype(side: TokenValues) -> type[np.generic]:
    return np.float64 if side.values.element_size() == 8 else np.float32
