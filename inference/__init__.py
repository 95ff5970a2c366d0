"""What a trained network predicts, how sure it is of it, and how good both are.

Pictures are in `inference.plots`, the only module here that imports matplotlib; `python -m inference.prune`,
`inference.export`, `inference.calibrate` and `inference.classify` are scripts.
"""

import sys

if sys.argv[:1] == ["-m"]:  # Python has not yet run the script of this room that it was told to run
    from support import exit_on_interrupt

    exit_on_interrupt()

from inference.classifier import Classifier, load_finite_network
from inference.decisions import (
    Decisions,
    conformal_quantile,
    decision_scores,
    fit_decisions,
    fit_temperature,
)
from inference.deployment import MeanNetwork, MomentNetwork, PredictiveNetwork, export_network, quantized
from inference.ensembles import dropout_predictive, ensemble_predictive
from inference.evaluation import (
    SHIFTS,
    ImageSets,
    Shift,
    batch_means,
    evaluate,
    is_honest,
    known_scores,
    load_test_data,
    load_training_data,
    novelties,
    shift_summary,
    split_scores,
    under_corruptions,
    under_shift,
)
from inference.likelihoods import BernoulliPredictive, Predictive, entropy, normalized_softplus, softmax
from inference.metrics import (
    accuracy,
    adaptive_ece,
    brier,
    ece,
    nll,
    novelty,
    reliability,
    risk_coverage,
    risk_coverage_area,
    scores,
    selective_scores,
    threshold_at_risk,
)
from inference.prediction import METHODS, Predictor, posterior_draws, posterior_predictive, predict, summarize
from inference.pruning import pruned, pruning_curve, signal_to_noise, sparsity
from inference.regression import GaussianLikelihood, RegressionPredictive, regression_predictive
from inference.tables import print_report
from inference.uncertainty import Uncertainty, decompose, uncertainty

__all__ = [
    "METHODS",
    "SHIFTS",
    "BernoulliPredictive",
    "Classifier",
    "Decisions",
    "GaussianLikelihood",
    "ImageSets",
    "MeanNetwork",
    "MomentNetwork",
    "Predictive",
    "PredictiveNetwork",
    "Predictor",
    "RegressionPredictive",
    "Shift",
    "Uncertainty",
    "accuracy",
    "adaptive_ece",
    "batch_means",
    "brier",
    "conformal_quantile",
    "decision_scores",
    "decompose",
    "dropout_predictive",
    "ece",
    "ensemble_predictive",
    "entropy",
    "evaluate",
    "export_network",
    "fit_decisions",
    "fit_temperature",
    "is_honest",
    "known_scores",
    "load_finite_network",
    "load_test_data",
    "load_training_data",
    "nll",
    "normalized_softplus",
    "novelties",
    "novelty",
    "posterior_draws",
    "posterior_predictive",
    "predict",
    "print_report",
    "pruned",
    "pruning_curve",
    "quantized",
    "regression_predictive",
    "reliability",
    "risk_coverage",
    "risk_coverage_area",
    "scores",
    "selective_scores",
    "shift_summary",
    "signal_to_noise",
    "softmax",
    "sparsity",
    "split_scores",
    "summarize",
    "threshold_at_risk",
    "uncertainty",
    "under_corruptions",
    "under_shift",
]
