"""The families of posteriors, one per file."""

from .alpha import AlphaPosterior
from .gaussian import GaussianPosterior
from .posterior import Posterior

__all__ = ["AlphaPosterior", "GaussianPosterior", "Posterior"]
