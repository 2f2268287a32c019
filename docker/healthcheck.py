"""The health check of our containers: exit status 0 when this container answers 200, else 1.

    python healthcheck.py QWENQ_PORT /readyz

The first argument names the variable that holds the port, so that the port stands in one place. Only the standard
library, and no proxy from the environment: the question never leaves the container. What the service says is
printed, and `docker inspect` shows it.
"""

import http.client
import os
import sys

SECONDS = 4.0  # less than the `timeout` of the checks in docker-compose.yml, so that the reason is seen


def main(variable: str, path: str) -> int:
    """Ask once."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ[variable]), timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"{path} does not answer: {error}\n")
        return 1
    sys.stdout.write(said)
    return 0 if answer.status == http.HTTPStatus.OK else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
