"""What a fitted network tells: predictions, uncertainties, scores."""

from inference.classifier import Classifier
from inference.prediction import Predictive, posterior_predictive

__all__ = ["Classifier", "Predictive", "posterior_predictive"]
