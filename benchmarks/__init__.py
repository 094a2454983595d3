"""Benchmarks: speed against peers, quality of trained encoders, and the tables of both."""
