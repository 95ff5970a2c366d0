"""What a trained network predicts, how sure it is of it, and what to do then.

Pictures are in `inference.plots`, the only module here that imports matplotlib; `python -m inference.prune`,
`inference.export`, `inference.calibrate` and `inference.classify` are scripts.
"""

import sys

if sys.argv[:1] == ["-m"]:  # Python has not yet run the script of this room that it was told to run
    from support import exit_on_interrupt

    exit_on_interrupt()

from inference.classifier import Classifier, load_finite_network, load_networks
from inference.decisions import (
    Decisions,
    decision_scores,
    fit_decisions,
    fit_temperature,
)
from inference.deployment import MeanNetwork, MomentNetwork, PredictiveNetwork, export_network, quantized
from inference.distributions import WeightDistribution
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
from inference.last_layer import LaplaceNetwork, laplace
from inference.prediction import METHODS, Predictor, posterior_draws, posterior_predictive, predict, summarize
from inference.pruning import pruned, pruning_curve, signal_to_noise, sparsity
from inference.regression import regression_predictive
from inference.regressor import Regressor
from inference.shipped import SHIPPED
from inference.swag import Swag
from inference.tables import print_report
from inference.task_reports import evaluate_task, load_for_task, print_task_report
from inference.uncertainty import Uncertainty, decompose, uncertainty

__all__ = [
    "METHODS",
    "SHIFTS",
    "SHIPPED",
    "Classifier",
    "Decisions",
    "ImageSets",
    "LaplaceNetwork",
    "MeanNetwork",
    "MomentNetwork",
    "PredictiveNetwork",
    "Predictor",
    "Regressor",
    "Shift",
    "Swag",
    "Uncertainty",
    "WeightDistribution",
    "batch_means",
    "decision_scores",
    "decompose",
    "dropout_predictive",
    "ensemble_predictive",
    "evaluate",
    "evaluate_task",
    "export_network",
    "fit_decisions",
    "fit_temperature",
    "is_honest",
    "known_scores",
    "laplace",
    "load_finite_network",
    "load_for_task",
    "load_networks",
    "load_test_data",
    "load_training_data",
    "novelties",
    "posterior_draws",
    "posterior_predictive",
    "predict",
    "print_report",
    "print_task_report",
    "pruned",
    "pruning_curve",
    "quantized",
    "regression_predictive",
    "shift_summary",
    "signal_to_noise",
    "sparsity",
    "split_scores",
    "summarize",
    "uncertainty",
    "under_corruptions",
    "under_shift",
]
