"""The report page: one self-contained HTML file that shows samples, curves, tables and settings."""

from sstoken_plugin.report.content import Breakdown, Moment, Report
from sstoken_plugin.report.render import render

__all__ = ["Breakdown", "Moment", "Report", "render"]
