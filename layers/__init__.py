"""Bayesian layers for PyTorch: a posterior, an estimator and an operation each."""

from layers.base import BayesianLayer, kl_divergence, sampling, weight_posteriors
from layers.BBBConv import BBBConv2d
from layers.BBBLinear import BBBLinear
from layers.convert import to_deterministic
from layers.misc import FlattenLayer, ModuleWrapper

__all__ = [
    "BBBConv2d",
    "BBBLinear",
    "BayesianLayer",
    "FlattenLayer",
    "ModuleWrapper",
    "kl_divergence",
    "sampling",
    "to_deterministic",
    "weight_posteriors",
]
