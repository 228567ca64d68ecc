"""What a snapshot settles on, and later ones of its run keep: the sampler and its chains. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from bif_lightning.config import Chains, Sampler


@dataclass(frozen=True)
class ResolvedSettings:
    """The settings of a snapshot.

    Attributes:
        sampler, chains: the settings.
        reasons: how they were found, in words; empty for settings that were given.
        lasting: whether later snapshots keep them. Weights that have learned nothing yet have settings that do not stay
            right, which serve one snapshot alone.
    """

    sampler: Sampler
    chains: Chains
    reasons: str = ""
    lasting: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the kind of the sampler by name."""
        kind, settings = type(self.sampler).__name__, asdict(self.sampler)
        chains, words = asdict(self.chains), {"reasons": self.reasons, "lasting": self.lasting}
        return {"kind": kind, "sampler": settings, "chains": chains} | words

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ResolvedSettings":
        """From `as_dict`.

        Raises:
            ValueError: a kind of sampler that this version does not know.
        """
        kinds = {kind.__name__: kind for kind in get_args(Sampler)}
        if values["kind"] not in kinds:
            raise ValueError(f"sampler kind {values['kind']!r} is unknown; this version has {', '.join(kinds)}")
        sampler = kinds[values["kind"]](**values["sampler"])
        return cls(sampler, Chains(**values["chains"]), values["reasons"], values.get("lasting", True))
