"""Every method on every network and data set of the plan, by the scripts' own functions; results and what they show."""
