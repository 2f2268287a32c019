"""The engine: requests in, events out. Knows nothing of queues or SQL."""
