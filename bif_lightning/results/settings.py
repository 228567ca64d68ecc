"""The settings of a snapshot, and their one form as plain values in dumps, checkpoints, manifests and answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from bif_lightning.config import Chains, Sampler


def encode(sampler: Sampler) -> dict[str, Any]:
    """A sampler's settings as plain values, with its kind by name.

    >>> from bif_lightning import Pairs
    >>> encode(Pairs(scale=0.5))
    {'kind': 'Pairs', 'scale': 0.5}
    """
    return {"kind": type(sampler).__name__} | asdict(sampler)


def decode(values: Mapping[str, Any]) -> Sampler:
    """From `encode`.

    Raises:
        ValueError: a kind of sampler that this version does not know.

    >>> decode({"kind": "Pairs", "scale": 0.5})
    Pairs(scale=0.5)
    """
    kinds = {kind.__name__: kind for kind in get_args(Sampler)}
    kind = values.get("kind")
    if kind not in kinds:
        raise ValueError(f"sampler kind {kind!r} is unknown; this version has {', '.join(kinds)}")
    return kinds[kind](**{name: value for name, value in values.items() if name != "kind"})


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
        """As plain values."""
        return {
            "sampler": encode(self.sampler),
            "chains": asdict(self.chains),
            "reasons": self.reasons,
            "lasting": self.lasting,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ResolvedSettings":
        """From `as_dict`.

        Raises:
            ValueError: a kind of sampler that this version does not know.
        """
        reasons, lasting = values.get("reasons", ""), values.get("lasting", True)
        return cls(decode(values["sampler"]), Chains(**values["chains"]), reasons, lasting)
