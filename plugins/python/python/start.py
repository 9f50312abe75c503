"""Starts a part of djl_python: `start.py worker ..` or `start.py prepare ..`."""

import os
import sys

if __name__ == "__main__":
    part, arguments = sys.argv[1], sys.argv[2:]
    if part == "prepare":
        from djl_python import prepare

        prepare.main(arguments)
    else:
        from djl_python import worker

        worker.main(arguments, os.path.dirname(os.path.abspath(__file__)))
