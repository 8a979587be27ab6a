"""Sessions: models compiled for this machine, and what programs do with them."""
