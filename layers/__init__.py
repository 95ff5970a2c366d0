"""Bayesian layers for PyTorch: each combines a posterior, an estimator and an operation.

The folder imports nothing else of the project: copied into another one, under any name, it works there.
"""

from .base import BayesianLayer, entropy, kl_divergence, parameter_groups, sampling, share_draws, weight_posteriors
from .BBBConv import (
    BBBConv1d,
    BBBConv2d,
    BBBConv3d,
    BBBConvTranspose1d,
    BBBConvTranspose2d,
    BBBConvTranspose3d,
)
from .BBBLinear import BBBEmbedding, BBBLinear
from .BBBSequence import BBBGRU, BBBLSTM, BBBMultiheadAttention
from .convert import deterministic_layers, posterior_as_prior, start_at_means, to_bayesian, to_deterministic
from .misc import FlattenLayer, ModuleWrapper
from .parameters import SampledParameter, sample_parameters
from .patches import patch_prior, start_as_patches
from .posteriors import (
    FAMILIES,
    AlphaPosterior,
    Family,
    GaussianPosterior,
    KTiedPosterior,
    LowRankPosterior,
    Posterior,
    RadialPosterior,
    Rank1Posterior,
)
from .priors import (
    CorrelatedGaussianPrior,
    DistributionPrior,
    GaussianPrior,
    Prior,
    Priors,
    scale_mixture,
)

__all__ = [
    "FAMILIES",
    "AlphaPosterior",
    "BBBConv1d",
    "BBBConv2d",
    "BBBConv3d",
    "BBBConvTranspose1d",
    "BBBConvTranspose2d",
    "BBBConvTranspose3d",
    "BBBEmbedding",
    "BBBGRU",
    "BBBLSTM",
    "BBBLinear",
    "BBBMultiheadAttention",
    "BayesianLayer",
    "CorrelatedGaussianPrior",
    "DistributionPrior",
    "Family",
    "FlattenLayer",
    "GaussianPosterior",
    "GaussianPrior",
    "KTiedPosterior",
    "LowRankPosterior",
    "ModuleWrapper",
    "Posterior",
    "Prior",
    "Priors",
    "RadialPosterior",
    "Rank1Posterior",
    "SampledParameter",
    "deterministic_layers",
    "entropy",
    "kl_divergence",
    "parameter_groups",
    "patch_prior",
    "posterior_as_prior",
    "sample_parameters",
    "sampling",
    "scale_mixture",
    "share_draws",
    "start_as_patches",
    "start_at_means",
    "to_bayesian",
    "to_deterministic",
    "weight_posteriors",
]
