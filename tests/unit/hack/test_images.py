"""Images written without a Docker, and their names and layers."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from hack.cluster import share
from hack.cluster.ociimage import Entry, ImageConfig, write_archive, write_layer


def entries(folder: Path) -> list[Entry]:
    program = folder / "program"
    program.write_text("a program")
    return [Entry("usr/bin/program", program), Entry("bin/link", link="../usr/bin/program"), Entry("tmp", mode=0o1777)]


def test_the_same_entries_give_the_same_layer(tmp_path: Path) -> None:
    some = entries(tmp_path)
    first = write_layer(tmp_path / "1.tar", some)
    second = write_layer(tmp_path / "2.tar", reversed(some))
    assert first.diff_id == second.diff_id
    assert first.diff_id == "sha256:" + hashlib.sha256((tmp_path / "1.tar").read_bytes()).hexdigest()


def test_a_layer_holds_files_links_and_folders(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "layer.tar", entries(tmp_path))
    with tarfile.open(layer.file) as archive:
        program, link, folder = (archive.getmember(name) for name in ("usr/bin/program", "bin/link", "tmp"))
        assert (program.isreg(), program.mode, program.mtime) == (True, 0o755, 0)
        assert (link.issym(), link.linkname) == (True, "../usr/bin/program")
        assert (folder.isdir(), folder.mode) == (True, 0o1777)


def test_an_archive_names_its_layer_by_the_diff_id(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "layer.tar", entries(tmp_path))
    out = io.BytesIO()
    write_archive(out, ["a/b:1", "a/c:1"], layer, ImageConfig(entrypoint=["/program"], stop_signal="SIGRTMIN+3"))
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        read = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        content = {name: file.read() for name, file in read.items() if file is not None}
    [manifest] = json.loads(content["manifest.json"])
    image = json.loads(content[manifest["Config"]])
    assert manifest["RepoTags"] == ["a/b:1", "a/c:1"]
    assert image["rootfs"]["diff_ids"] == [layer.diff_id]
    assert hashlib.sha256(content[manifest["Layers"][0]]).hexdigest() == layer.diff_id.partition(":")[2]
    assert image["config"]["Entrypoint"] == ["/program"]
    assert image["config"]["StopSignal"] == "SIGRTMIN+3"
    assert "Cmd" not in image["config"]


@pytest.mark.parametrize(
    ("image", "full"),
    {
        "busybox": "docker.io/library/busybox:latest",
        "finetune-trainer:dev": "docker.io/library/finetune-trainer:dev",
        "finetune-test/traefik:v3": "docker.io/finetune-test/traefik:v3",
        "localhost/x:1": "localhost/x:1",
        "registry.example:5000/x": "registry.example:5000/x:latest",
        "registry.example/a/b:1": "registry.example/a/b:1",
        "a@sha256:0123": "docker.io/library/a@sha256:0123",
    }.items(),
)
def test_containerds_name_of_dockers_image(image: str, full: str) -> None:
    assert share.full_reference(image) == full


def test_layers_are_named_topmost_first(tmp_path: Path) -> None:
    (tmp_path / "link").write_text("TOP\n")
    assert share.layer_links(tmp_path) == ["l/TOP"]
    (tmp_path / "lower").write_text("l/MIDDLE:l/BOTTOM\n")
    assert share.layer_links(tmp_path) == ["l/TOP", "l/MIDDLE", "l/BOTTOM"]


def test_a_stand_in_starts_as_the_real_image_does() -> None:
    config = share.container_config({"Entrypoint": None, "Cmd": ["serve"], "Env": ["A=b"], "User": "10001", "Image": "x"})
    assert config.as_json() == {"Cmd": ["serve"], "Env": ["A=b"], "User": "10001"}
