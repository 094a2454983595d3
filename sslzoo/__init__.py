"""sslzoo: a PyTorch Lightning model zoo of self-supervised learning."""

__version__ = "0.1.0"
