"""Profiles as pictures and traces: one HTML file, Chrome traces, speedscope."""

from hal.report.flame import speedscope
from hal.report.page import html
from hal.report.trace import chrome_trace

__all__ = ["chrome_trace", "html", "speedscope"]
