"""Public placement problems, read into :class:`hal.planning.problem.Problem`; the data lies elsewhere."""
