"""Writes images as `docker load` and `ctr images import` read them: one layer, no daemon and no Dockerfile needed."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

SEARCH_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Entry:
    """One thing in a layer: the copy of a file, a link to `link`, or (with neither) a folder."""

    path: str
    source: Path | None = None
    link: str = ""
    mode: int = 0o755


@dataclass(frozen=True)
class ImageConfig:
    """How a container of the image starts."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Sequence[str] = (SEARCH_PATH,)
    user: str = ""
    working_folder: str = ""
    stop_signal: str = ""

    def as_json(self) -> dict[str, Any]:
        everything = {
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "Env": list(self.environment),
            "User": self.user,
            "WorkingDir": self.working_folder,
            "StopSignal": self.stop_signal,
        }
        return {key: value for key, value in everything.items() if value}


@dataclass
class Layer:
    """A layer's tar file and its diff id, sha256:…, by which images and snapshots name it."""

    file: Path
    diff_id: str = field(init=False)

    def __post_init__(self) -> None:
        with self.file.open("rb") as content:
            self.diff_id = "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()


def write_layer(file: Path, entries: Iterable[Entry]) -> Layer:
    """Packs the entries into a layer; the same entries give the same bytes."""
    with tarfile.open(file, "w") as layer:
        for entry in sorted(entries, key=lambda entry: entry.path):
            _add(layer, entry)
    return Layer(file)


def _add(layer: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path.lstrip("/"))
    info.mode = entry.mode
    if entry.source is not None:
        info.size = entry.source.stat().st_size
        with entry.source.open("rb") as content:
            layer.addfile(info, content)
        return
    info.type = tarfile.SYMTYPE if entry.link else tarfile.DIRTYPE
    info.linkname = entry.link
    layer.addfile(info)


def image_config(config: ImageConfig, diff_id: str) -> dict[str, Any]:
    """The image's configuration. Source: OCI image specification, config.md."""
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": config.as_json(),
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{}],
    }


def write_archive(out: IO[bytes], names: Sequence[str], layer: Layer, config: ImageConfig) -> None:
    """Writes a docker archive with one image under all the names."""
    manifest = [{"Config": "config.json", "RepoTags": list(names), "Layers": ["layer.tar"]}]
    with tarfile.open(fileobj=out, mode="w|") as archive:
        _add_json(archive, "manifest.json", manifest)
        _add_json(archive, "config.json", image_config(config, layer.diff_id))
        archive.add(layer.file, "layer.tar")


def _add_json(archive: tarfile.TarFile, name: str, value: list[Any] | Mapping[str, Any]) -> None:
    content = json.dumps(value, sort_keys=True).encode()
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
