"""How a network is fitted: data, objective, loop, settings, reports."""
