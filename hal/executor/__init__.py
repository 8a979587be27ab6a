"""Carrying out a plan: partitions in order, tensors handed from one to the next."""
