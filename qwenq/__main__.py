"""`python -m qwenq`: the same program as the console script, for children started by `qwenq up`."""

from qwenq.cli import main

if __name__ == "__main__":
    main()
