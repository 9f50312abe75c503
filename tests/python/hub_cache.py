"""What `huggingface_hub` itself makes of a hub and a cache; prints the snapshot's folder.

`hub_cache.py fill ID` downloads what is listed on standard input, one pattern a line;
`hub_cache.py find ID` uses the cache alone. Endpoint and cache are told by HF_ENDPOINT and HF_HUB_CACHE.
"""

import sys

from huggingface_hub import scan_cache_dir, snapshot_download


def main(action, repository):
    if action == "fill":
        patterns = sys.stdin.read().split()
        print(snapshot_download(repository, allow_patterns=patterns or None))
    else:
        print(snapshot_download(repository, local_files_only=True))
        report = scan_cache_dir()
        if report.warnings:
            sys.exit(f"warnings: {report.warnings}")
        found = sorted(repo.repo_id for repo in report.repos)
        if found != [repository]:
            sys.exit(f"repositories: {found}")


if __name__ == "__main__":
    main(*sys.argv[1:])
