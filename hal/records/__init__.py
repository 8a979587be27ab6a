"""Frozen data and its JSON: targets, devices, costs and profiles."""
