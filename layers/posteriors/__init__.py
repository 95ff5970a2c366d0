"""The families of posteriors, one per file."""

from .alpha import AlphaPosterior
from .families import FAMILIES, Family
from .gaussian import GaussianPosterior
from .k_tied import KTiedPosterior
from .low_rank import LowRankPosterior
from .posterior import Posterior
from .radial import RadialPosterior
from .rank1 import Rank1Posterior

__all__ = [
    "FAMILIES",
    "AlphaPosterior",
    "Family",
    "GaussianPosterior",
    "KTiedPosterior",
    "LowRankPosterior",
    "Posterior",
    "RadialPosterior",
    "Rank1Posterior",
]
