"""The chains of one snapshot divided among workers that share a folder: each leaves the outcomes of those it ran."""

import hashlib
import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from bif_lightning.distributed.leases import Leases
from bif_lightning.distributed.threads import Progress
from bif_lightning.estimation.estimator import Outcome
from bif_lightning.results.estimate import Divergence
from bif_lightning.sampling.chain import ChainContext
from bif_lightning.sampling.trace import ChainTrace
from bif_lightning.statistics.moments import Moments
from bif_lightning.storage.atomic import atomic_write

_POLL_SECONDS = 0.5
Runner = Callable[[Sequence[int], Progress], list[Outcome]]


@dataclass
class ChainExchange:
    """One worker's part in one snapshot (an `estimator.Exchange`).

    The bits of a chain depend on the weights and the settings alone, so that it does not matter who ran it, and a chain
    that two workers ran gives the same file.

    Args:
        folder: of the outcomes of this snapshot.
        claims: of this worker.
        finishes: this worker waits for all chains and makes the dump; others leave once no chain is free.
    """

    folder: Path
    claims: Leases
    finishes: bool
    ran: int = 0

    def __call__(
        self, plan: ChainContext, run: Runner, chains: Sequence[int], at_once: int, beat: Progress
    ) -> list[Outcome] | None:
        """Run what is free, take what is there; wait for the rest if this worker finishes.

        Raises:
            OSError: an outcome cannot be written.
        """
        key = _key(plan)
        # Helpers begin at the other end, so that they rarely want the same chains.
        missing, found = list(chains) if self.finishes else list(reversed(chains)), dict[int, Outcome]()
        while True:
            found |= {chain: outcome for chain in missing if (outcome := self._read(chain, key)) is not None}
            missing = [chain for chain in missing if chain not in found]
            told = _beyond(len(found), len(chains), plan.chains.num_steps, beat)
            fresh = self._run_free(missing, run, at_once, key, told)
            if not missing and self.finishes:
                return [found[chain] for chain in chains]
            if not fresh:
                if not self.finishes:
                    return None
                told(0, 0)
                time.sleep(_POLL_SECONDS)

    def clear(self) -> None:
        """The dump is written: no outcome is needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run_free(self, missing: Sequence[int], run: Runner, at_once: int, key: str, told: Progress) -> int:
        """Run as many chains that nobody works on as run at once; how many these were."""
        with ExitStack() as held:
            mine = list[int]()
            for chain in missing:
                if len(mine) < at_once and held.enter_context(self.claims.claimed(self._name(chain))):
                    mine.append(chain)
            mine = [chain for chain in mine if self._read(chain, key) is None]  # left just before it was claimed
            for outcome in run(mine, told) if mine else ():
                self._write(outcome, key)
                self.ran += 1
            return len(mine)

    def _name(self, chain: int) -> str:
        return f"{self.folder.name}.chain={chain:04d}"

    def _path(self, chain: int) -> Path:
        return self.folder / f"chain={chain:04d}.pt"

    def _write(self, outcome: Outcome, key: str) -> None:
        values = asdict(outcome) if isinstance(outcome, Divergence) else _plain(outcome)
        content = io.BytesIO()
        torch.save({"key": key, "kind": type(outcome).__name__, "outcome": values}, content)
        with atomic_write(self._path(outcome.chain), content.tell()) as sink:
            sink.write(content.getbuffer())

    def _read(self, chain: int, key: str) -> Outcome | None:
        try:
            content = torch.load(self._path(chain), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        if content["key"] != key:  # of other weights: a run that was trained again
            return None
        values = content["outcome"]
        return Divergence(**values) if content["kind"] == Divergence.__name__ else _record(values)


def _beyond(found: int, chains: int, steps: int, beat: Progress) -> Progress:
    """Progress of some chains, as that of all: `found` of them are there, of so many steps each."""

    def told(done: int, _: int) -> None:
        beat(found * steps + done, chains * steps)

    return told


def _key(plan: ChainContext) -> str:
    """What the bits of a chain depend on: the weights, and the settings."""
    found = hashlib.sha256(plan.backend.center.detach().cpu().numpy().tobytes())
    found.update(repr((plan.sampler, plan.chains, plan.snapshot, plan.loss, plan.traces)).encode())
    return found.hexdigest()


def _plain(record: ChainTrace) -> dict[str, Any]:
    values = {name: value for name, value in vars(record).items() if name != "parts"}
    return values | {"lengths": list(record.lengths), "parts": [dict(vars(part)) for part in record.parts]}


def _record(values: Mapping[str, Any]) -> ChainTrace:
    parts = [Moments(**part) for part in values["parts"]]
    return ChainTrace(**cast(dict[str, Any], {**values, "parts": parts}))
