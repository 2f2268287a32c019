"""The command line and the local stack: stands on top of api, worker and storage."""
