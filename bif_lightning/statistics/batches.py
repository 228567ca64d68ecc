"""How the draws of a chain are divided into batches, whose spread gives standard errors."""

from bif_lightning.config import Chains

_BATCHES = 24


def batch_lengths(chains: Chains, *, paired: bool = False) -> list[int]:
    """Lengths of the batches of consecutive draws, of one chain, whose spread gives standard errors.

    Few and long ones: about 24 over all chains, at least 4 draws each, so that a batch outlasts the memory of
    its chain (Flegal & Jones 2010 on batch means). Of independent pairs, whole pairs.

    >>> batch_lengths(Chains(num_chains=4, num_draws=100))
    [17, 17, 17, 17, 16, 16]
    """
    unit, least = (2, 1) if paired else (1, 4)
    draws = chains.num_draws // unit
    batches = max(1, min(-(-_BATCHES // chains.num_chains), draws // least))
    long, rest = divmod(draws, batches)
    return [unit * (long + 1)] * rest + [unit * long] * (batches - rest)
