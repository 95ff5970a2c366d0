"""Prediction in one pass: every activation is a mean and a variance, which the operations of the network carry along.

A `Moments` is a mean and a variance that stand for a tensor. It goes through any `forward`: torch hands each operation
that it meets to the rule registered for it, so branches, sums and reshapes need nothing special, and the network is
the user's own. The weights of Bayesian layers are random as well: for independent inputs of mean m and variance v,

    mean = op(m, μ, b)        variance = op(m², σ², σ_b²) + op(v, μ² + σ²)

which is exact. Activations treat their input as normal, and keep two moments of it.

The units of the last hidden layers are correlated, because they share uncertain inputs; their variances alone
understate that of the logits. So from the first fully connected layer on, each operation notes how its output depends
on its input (`Link`), and a backward pass over the links gives the covariance of the logits; of many classes, a forward
pass of draws over the links costs less.
"""

from moments import rules  # which registers them
from moments.functions import leaky_relu_moments, maximum_moments, relu_moments, scalar_moments
from moments.logits import (
    DRAWS,
    Propagation,
    cholesky,
    fixed_normals,
    link_draws,
    logit_covariance,
    logit_draws,
    propagate,
)
from moments.pair import RULES, Link, MissingRuleError, Moments, Rule, rule
from moments.weights import WeightMoments, component_count, known_weights, weight_moments

__all__ = [
    "DRAWS",
    "RULES",
    "Link",
    "MissingRuleError",
    "Moments",
    "Propagation",
    "Rule",
    "WeightMoments",
    "cholesky",
    "component_count",
    "fixed_normals",
    "known_weights",
    "leaky_relu_moments",
    "link_draws",
    "logit_covariance",
    "logit_draws",
    "maximum_moments",
    "propagate",
    "relu_moments",
    "rule",
    "rules",
    "scalar_moments",
    "weight_moments",
]
