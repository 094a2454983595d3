"""Callbacks: teachers, memories and evaluation during training."""
