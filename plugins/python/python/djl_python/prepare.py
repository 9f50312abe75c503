"""What is done once before a model's workers start: its virtual environment, its requirements, and
an entry point that is elsewhere. The last lines of the output say what came of it, `name=value`.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import urllib.request

# An entry point above this many bytes is no handler.
MAX_ENTRY_BYTES = 16 << 20


def main(arguments):
    """Prepares what the arguments ask for. Requirements that can't be installed are no error: the
    handler may do without them, and says what is missing if it can't."""
    parser = argparse.ArgumentParser(prog="djl_python.prepare")
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--work-dir", required=True)
    parser.add_argument("--venv", action="store_true")
    parser.add_argument("--entry-url", default="")
    options = parser.parse_args(arguments)
    python = sys.executable
    if options.venv:
        python = make_venv(options)
        print(f"python={python}", flush=True)
    if options.entry_url:
        print(f"entry={fetch(options.entry_url, options.work_dir)}", flush=True)
    requirements = os.path.join(options.model_dir, "requirements.txt")
    if os.path.isfile(requirements):
        status = install(python, requirements, os.path.join(options.model_dir, "requirements"))
        print(f"requirements={status}", flush=True)


def is_offline():
    """Whether nothing may be fetched."""
    return os.environ.get("DJL_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def make_venv(options):
    """A virtual environment of the model's, which also sees what the interpreter has installed."""
    base = os.environ.get("DJL_VENV_DIR")
    name = hashlib.sha256(os.path.abspath(options.model_dir).encode("utf-8")).hexdigest()[:16]
    folder = os.path.join(base, name) if base else os.path.join(options.work_dir, "venv")
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        command = [sys.executable, "-m", "venv", "--system-site-packages", folder]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return python


def install(python, requirements, wheels):
    """Installs requirements quietly; `ok`, or `failed` with pip's words on standard error."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    has_wheels = os.path.isdir(wheels)
    if has_wheels:
        command += ["--find-links", wheels]
    if is_offline():
        command += ["--no-index"] if has_wheels else ["--no-index", "--no-deps"]
    command += ["-r", requirements]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, cwd=os.path.dirname(requirements), check=False
    )
    return "ok" if done.returncode == 0 else "failed"


def fetch(url, work_dir):
    """Downloads an entry point and returns its file."""
    if is_offline():
        raise SystemExit(f"option.entryPoint={url}: DJL_OFFLINE forbids to fetch it")
    name = os.path.basename(url.split("?")[0]) or "model.py"
    # A folder of its own: the working directory has files that workers are started with.
    folder = os.path.join(work_dir, "entry")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name if name.endswith(".py") else name + ".py")
    with urllib.request.urlopen(url, timeout=60) as response:
        data = response.read(MAX_ENTRY_BYTES + 1)
    if len(data) > MAX_ENTRY_BYTES:
        raise SystemExit(f"option.entryPoint={url}: above {MAX_ENTRY_BYTES} bytes")
    with open(path, "wb") as file:
        file.write(data)
    return path
