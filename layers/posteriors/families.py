"""The families of posteriors by name, and how a layer's arguments choose one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..priors import Priors
from .alpha import AlphaPosterior
from .gaussian import GaussianPosterior
from .k_tied import KTiedPosterior
from .low_rank import LowRankPosterior
from .posterior import Posterior
from .radial import RadialPosterior
from .rank1 import Rank1Posterior

FAMILIES: dict[str, type[Posterior]] = {
    kind.family: kind
    for kind in (
        GaussianPosterior,
        AlphaPosterior,
        KTiedPosterior,
        RadialPosterior,
        LowRankPosterior,
        Rank1Posterior,
    )
}


@dataclass(frozen=True)
class Family:
    """A family of posteriors with all of its options.

    Attributes:
        name: a key of `FAMILIES`.
        options: its options, by name.
    """

    name: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, posterior: str | Mapping[str, Any] | Family, alpha_shape: Sequence[int] | None = None) -> Family:
        """The family that a layer's arguments choose.

        Args:
            posterior: a name, or a dict of it and of options, such as {"family": "k_tied", "rank": 3}.
            alpha_shape: stands for {"family": "alpha", "alpha_shape": alpha_shape}.

        Raises:
            ValueError: an unknown family (the nearest one is named), an option that the family does not have or a
                value that it cannot have, or `alpha_shape` with another family.
        """
        if isinstance(posterior, Family):
            return posterior
        if not isinstance(posterior, (str, Mapping)):
            raise ValueError(f"posterior must be the name of a family, or a dict of it and its options: {posterior!r}")
        options = {"family": posterior} if isinstance(posterior, str) else dict(posterior)
        name = str(options.pop("family", ""))
        if name not in FAMILIES:
            near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0)[0]
            raise ValueError(f"unknown posterior {name!r}: did you mean {near!r}? Known are {', '.join(FAMILIES)}")
        if alpha_shape is not None:
            if (name, options) not in (("gaussian", {}), ("alpha", {})):
                raise ValueError(f"alpha_shape is of the alpha posterior, and posterior is {posterior!r}: give one")
            name, options = "alpha", {"alpha_shape": alpha_shape}
        known = FAMILIES[name].options
        for option in options:
            if option not in known:
                has = f"has the options {', '.join(known)}" if known else "has no options"
                raise ValueError(f"unknown option {option!r}: the {name} posterior {has}")
        values = {}
        for option, (default, check) in known.items():
            value = options.get(option, default)
            try:
                values[option] = check(value)
            except ValueError as error:
                raise ValueError(f"{option} of the {name} posterior: expected {error}, got {value!r}") from error
        return cls(name, values)

    def make(self, layer: Any, mean: Tensor, priors: Priors) -> Posterior | None:
        """The posterior of a parameter of a layer: see `Posterior.for_parameter`."""
        return FAMILIES[self.name].for_parameter(layer, mean, priors, **self.options)
