"""Memories: rows kept between steps, staged by the losses and committed once a step."""

from sslzoo.memory.bank import MemoryBank
from sslzoo.memory.base import Memory, memory_buffers
from sslzoo.memory.center import Center
from sslzoo.memory.queue import Queue

__all__ = ["Center", "Memory", "MemoryBank", "Queue", "memory_buffers"]
