"""Units of a graph and, later, where to put them: numbers only, no device and no framework."""
