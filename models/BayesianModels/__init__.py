"""Networks with a posterior over every weight."""
