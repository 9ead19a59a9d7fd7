"""A search as one HTML page: what was chosen, what was tried, and how sure the figures are.

The page is one file without scripts and without anything to fetch. It is a pure function of its content:
nothing here reads a bundle, measures, or writes a file.
"""

from alula.report.content import Finalist, FolderSpeed, ReportContent, Roofline, Stage
from alula.report.page import render_page

__all__ = ["Finalist", "FolderSpeed", "ReportContent", "Roofline", "Stage", "render_page"]
