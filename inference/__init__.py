"""What a fitted network tells: predictions, uncertainties, scores."""
