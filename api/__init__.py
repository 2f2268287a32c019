"""The HTTP API: it accepts jobs, shows their state and waits for their ends. It never imports torch."""
