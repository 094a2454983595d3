"""The verb `sslzoo eval`: what encoders are worth on a data module."""

from sslzoo.eval_command.command import main
from sslzoo.eval_command.models import build_data, read_model

__all__ = ["build_data", "main", "read_model"]
