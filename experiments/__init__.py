"""Every planned method on every planned network and data set, with the results, their tables and figures."""
