"""ONNX graphs: reading, binding shapes, facts per node and the trusted reference.

Plugins import :class:`Graph` from :mod:`hal.graph.model`; this module loads nothing by itself.
"""
