"""The state of every job in SQL and Redis, and the few functions that change it."""
