"""How the means and variances of a network move while it trains: recorded, read back, drawn."""
