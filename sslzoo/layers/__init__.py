"""Layers that backbones and heads share: batch norm over ranks and transformer blocks."""
