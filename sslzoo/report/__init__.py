"""Report: one or several runs as a self-contained HTML file."""

from sslzoo.report.callback import RunReport

__all__ = ["RunReport"]
