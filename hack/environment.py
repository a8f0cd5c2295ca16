"""The locked Python environment: uv in the cache, `.venv` in the repository. `python3 -m hack.environment [uv]`.

Standard library only: it runs with whatever Python 3.11 a bare machine has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_UV_VERSION = "0.13.9"


def cache() -> Path:
    """Where everything slow is kept between runs."""
    own = os.environ.get("FINETUNE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


def uv() -> Path:
    """uv of the pinned version, installed into the cache by pip where it is not there."""
    home = cache() / "uv"
    program = home / "bin" / "uv"
    if program.exists():
        return program
    shutil.rmtree(home, ignore_errors=True)
    if subprocess.run([sys.executable, "-m", "venv", str(home)], capture_output=True).returncode != 0:
        # Debian ships Python without ensurepip
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "python3-venv"], check=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", f"uv=={_UV_VERSION}"], check=True)
    return program


def sync() -> Path:
    """`.venv` as uv.lock has it; its bin folder."""
    # the interpreter that runs this: uv must not look for one to download
    subprocess.run([str(uv()), "sync", "--frozen", "--all-extras", "--quiet", "--python", sys.executable], cwd=REPOSITORY, check=True)
    return REPOSITORY / ".venv" / "bin"


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - said here to whoever has an older one
        sys.exit(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}")
    print(uv() if sys.argv[1:] == ["uv"] else sync())
