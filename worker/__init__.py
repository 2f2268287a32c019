"""The Celery worker: claims jobs, runs them through the engine, delivers webhooks."""
