"""Memories: rows kept between steps, staged in a step and committed after it."""

from sslzoo.memory.bank import MemoryBank
from sslzoo.memory.base import Memory, commit_memories, memories, memory_buffers
from sslzoo.memory.center import Center
from sslzoo.memory.clusters import ClusterMemory
from sslzoo.memory.k_means import spherical_k_means
from sslzoo.memory.queue import Queue

__all__ = [
    "Center",
    "ClusterMemory",
    "Memory",
    "MemoryBank",
    "Queue",
    "commit_memories",
    "memories",
    "memory_buffers",
    "spherical_k_means",
]
