"""Choosing a plan by measuring the finalists."""
