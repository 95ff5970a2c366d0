"""Speed and memory of layers, training and prediction, compared with deterministic twins and other libraries."""
