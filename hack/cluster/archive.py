"""Image archives in the cache: written aside and renamed last, so that a name is only ever a whole image's."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from .ociimage import ImageConfig, Layer, write_archive
from .packages import find_program
from .paths import Paths
from .progress import CommandFailed


def find_archive(paths: Paths, stem: str) -> Path | None:
    """The archive of an image, packed or not."""
    return next((file for file in (_named(paths, stem, ".tar.zst"), _named(paths, stem, ".tar")) if file.exists()), None)


def save_archive(paths: Paths, stem: str, names: Sequence[str], layer: Layer, config: ImageConfig) -> Path:
    """Writes an image into the cache, packed where zstd is there (a third of the size)."""
    packed = find_program("zstd") is not None
    file = _named(paths, stem, ".tar.zst" if packed else ".tar")
    partial = file.with_name(f".{file.name}.partial")
    with _packing(partial) if packed else partial.open("wb") as out:
        write_archive(out, names, layer, config)
    partial.rename(file)
    return file


def drop_others(paths: Paths, prefix: str, keep: Path) -> None:
    """Removes archives of the same thing made from older sources, and halves that a killed run left."""
    for file in [*paths.archives.glob(f"{prefix}-*"), *paths.archives.glob(".*.partial")]:
        if file != keep:
            file.unlink()


def _named(paths: Paths, stem: str, suffix: str) -> Path:
    return paths.archives / (stem + suffix)


@contextlib.contextmanager
def _packing(file: Path) -> Iterator[IO[bytes]]:
    with subprocess.Popen(["zstd", "-q", "-f", "-T0", "-3", "-o", file], stdin=subprocess.PIPE) as packer:
        assert packer.stdin is not None
        yield packer.stdin
        packer.stdin.close()
        if packer.wait():
            raise CommandFailed(f"zstd could not write {file}")
