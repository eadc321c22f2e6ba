"""Waits until MLflow's pages are there, says where, and opens them in a browser.

python -m pipeline.commands.opening ADDRESS PORT show|say: a process of its own beside the server.
"""

import http.client
import os
import sys
import time
import webbrowser

HOST = "127.0.0.1"


def answers(port: int) -> bool:
    """Whether MLflow answers on a port of this machine, past any proxy."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main(address: str, port: int, show: bool) -> None:
    """Returns, too, where the server, its parent, has ended before it answered."""
    server = os.getppid()
    while os.getppid() == server:
        if answers(port):
            print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
            if show:
                webbrowser.open(address)
            return
        time.sleep(0.3)


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "show")
    except KeyboardInterrupt:
        sys.exit(130)
