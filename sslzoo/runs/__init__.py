"""Runs: contents of run directories, provenance, and evaluation results."""
