"""Profiles and plans as pictures and traces: HTML files, Chrome traces, speedscope, annotated models."""

from hal.report.annotate import annotated, write_annotated
from hal.report.flame import speedscope
from hal.report.page import html
from hal.report.plan_page import plan_html
from hal.report.trace import chrome_trace

__all__ = ["annotated", "chrome_trace", "html", "plan_html", "speedscope", "write_annotated"]
