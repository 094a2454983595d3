"""Runs: what a run directory holds, its provenance, and the results of evaluations."""
