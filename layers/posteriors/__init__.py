"""The families of posteriors, one per file."""

from .alpha import AlphaPosterior
from .families import FAMILIES, Family
from .gaussian import GaussianPosterior
from .k_tied import KTiedPosterior
from .posterior import Posterior

__all__ = ["FAMILIES", "AlphaPosterior", "Family", "GaussianPosterior", "KTiedPosterior", "Posterior"]
