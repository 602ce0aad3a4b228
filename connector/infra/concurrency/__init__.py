"""Bounded queues, fair semaphores, thread pools and counters."""
