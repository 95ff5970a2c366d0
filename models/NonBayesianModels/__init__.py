"""The frequentist twins."""
