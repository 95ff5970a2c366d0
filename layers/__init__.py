"""Bayesian layers for PyTorch: a posterior, an estimator and an operation each."""

from layers.base import BayesianLayer, kl_divergence, sampling, weight_posteriors
from layers.BBBConv import (
    BBBConv1d,
    BBBConv2d,
    BBBConv3d,
    BBBConvTranspose1d,
    BBBConvTranspose2d,
    BBBConvTranspose3d,
)
from layers.BBBLinear import BBBEmbedding, BBBLinear
from layers.BBBSequence import BBBGRU, BBBLSTM, BBBMultiheadAttention
from layers.convert import deterministic_layers, start_at_means, to_bayesian, to_deterministic
from layers.misc import FlattenLayer, ModuleWrapper
from layers.posterior import AlphaPosterior, GaussianPosterior, Posterior
from layers.priors import Priors, scale_mixture

__all__ = [
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
    "FlattenLayer",
    "GaussianPosterior",
    "ModuleWrapper",
    "Posterior",
    "Priors",
    "deterministic_layers",
    "kl_divergence",
    "sampling",
    "scale_mixture",
    "start_at_means",
    "to_bayesian",
    "to_deterministic",
    "weight_posteriors",
]
