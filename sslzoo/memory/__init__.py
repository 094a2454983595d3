"""Memories: rows kept between steps, staged by the losses and committed once a step."""

from sslzoo.memory.bank import MemoryBank
from sslzoo.memory.base import Memory, memory_buffers

__all__ = ["Memory", "MemoryBank", "memory_buffers"]
