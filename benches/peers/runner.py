"""The loop of every runner: one JSON command a line in, one answer a line out.

benches/src/protocol.rs says what the lines hold. A runner module calls `serve` with a function that
loads the model and returns an object with the methods `hidden`, `prefill` and `generate`. Each returns
a function that does the work: it is called in the timed span, and what it returns goes through
`values` or `tokens` after it.
"""

import argparse
import json
import os
import sys
import time


class Unsupported(Exception):
    """The library has no way to do this work."""


def serve(name, load):
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--format", required=True)
    arguments.add_argument("--threads", type=int, required=True)
    arguments = arguments.parse_args()
    # What libraries print goes to standard error, whichever way they print it.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(kind, what):
        out.write(json.dumps({kind: what}) + "\n")
        out.flush()

    started, version, model = load(arguments)
    say("ready", {"load_seconds": time.perf_counter() - started, "version": f"{name} {version}"})
    for line in sys.stdin:
        try:
            say("done", run(model, json.loads(line)))
        except Unsupported as error:
            say("unsupported", str(error))
        except Exception as error:
            say("failed", f"{type(error).__name__}: {error}")


def run(model, command):
    task = command["task"]
    work = getattr(model, task, None)
    if work is None:
        raise Unsupported(f"no {task}")
    work = work(command)
    started = time.perf_counter()
    result = work()
    done = {"seconds": time.perf_counter() - started}
    if task == "generate":
        done["tokens"] = model.tokens(result)
    elif command["wants_output"]:
        done["values"] = [float(value) for value in model.values(result, task)]
    return done


def sampled(rows):
    """The rows of one sequence that are compared."""
    return [rows[0], rows[len(rows) // 2], rows[len(rows) - 1]]
