"""How fast the layers, the training and the prediction are, beside deterministic twins and other libraries."""
