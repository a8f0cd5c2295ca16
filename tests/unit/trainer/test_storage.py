"""Publishing: aside, hashed, the manifest last; the first writer wins; what is not as recorded is found before it is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from finetune_api.answer import StageResult
from finetune_api.run import RunSpec, Stage, StorageLocation
from finetune_api.sections.data import Dataset
from finetune_api.sections.model import Model
from finetune_trainer.errors import StageError
from finetune_trainer.stages import inputs_digest
from finetune_trainer.storage import (
    JobStorage,
    copy_published,
    filled_aside,
    folder_digest,
    hash_folder,
    is_whole,
    local_path,
    resolve_inside,
    verify_files,
    write_atomically,
    write_record,
)


def storage(root: Path, writer: str = "one", prefix: str = "jobs/u") -> JobStorage:
    return JobStorage(StorageLocation(root=str(root), prefix=prefix, uri="pvc://claim"), writer)


def publish(store: JobStorage, text: str = "content", stage: Stage = Stage.PREPARE) -> Path:
    folder = store.new_folder(stage)
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text(text)
    store.publish(stage, folder, "inputs", StageResult(stage=stage, message=text))
    return folder


def test_what_was_published_is_found_verified(tmp_path: Path) -> None:
    folder = publish(storage(tmp_path))
    manifest, content = storage(tmp_path, "two").finished(Stage.PREPARE)
    assert content == folder
    assert [file.path for file in manifest.files] == ["sub/file"]
    assert manifest.result.manifest_digest == manifest.digest


def test_nothing_is_finished_before_the_manifest(tmp_path: Path) -> None:
    store = storage(tmp_path)
    (store.new_folder(Stage.TRAIN) / "half").write_text("x")
    assert store.manifest(Stage.TRAIN) is None
    with pytest.raises(StageError, match="StageMissing"):
        store.finished(Stage.TRAIN)


def test_a_late_writer_publishes_nothing(tmp_path: Path) -> None:
    publish(storage(tmp_path, "first"), "first")
    late = storage(tmp_path, "late")
    folder = late.new_folder(Stage.PREPARE)
    (folder / "file").write_text("late")
    winner = late.publish(Stage.PREPARE, folder, "inputs", StageResult(stage=Stage.PREPARE, message="late"))
    assert winner.result.message == "first"
    assert late.finished(Stage.PREPARE)[0].directory == "first"
    assert sorted(os.listdir(late.stage_folder(Stage.PREPARE))) == ["first", "manifest.json"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.write_text("c0ntent"), "SHA-256"),
        (lambda file: file.write_text("cont"), "4 bytes"),
        (lambda file: file.unlink(), "missing"),
    ],
    ids=["flipped", "cut short", "gone"],
)
def test_a_harmed_file_is_found_before_it_is_used(tmp_path: Path, harm: object, words: str) -> None:
    store = storage(tmp_path)
    harm(publish(store) / "sub" / "file")  # type: ignore[operator]
    with pytest.raises(StageError, match=words) as caught:
        store.finished(Stage.PREPARE)
    assert caught.value.reason == "CorruptArtifact"


def test_publishing_removes_what_killed_and_late_writers_left(tmp_path: Path) -> None:
    killed = storage(tmp_path, "killed").new_folder(Stage.PREPARE)
    (killed / "merged").mkdir()
    (killed / "merged" / "weights").write_bytes(b"many gigabytes")
    late_store = storage(tmp_path, "late")
    late = late_store.new_folder(Stage.PACKAGE)
    rank = storage(tmp_path, "one-rank1").new_folder(Stage.PREPARE)
    elsewhere = storage(tmp_path, "other").new_folder(Stage.TRAIN)

    kept = publish(storage(tmp_path))
    publish(storage(tmp_path), stage=Stage.PACKAGE)
    assert kept.exists()
    assert not killed.exists()
    assert rank.exists()  # another process of this very pod
    assert elsewhere.exists()

    late.mkdir()
    late_store.publish(Stage.PACKAGE, late, "inputs", StageResult(stage=Stage.PACKAGE))
    assert not late.exists()


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    store = storage(tmp_path)
    publish(store)
    (store.stage_folder(Stage.PREPARE) / "manifest.json").write_text("{")
    with pytest.raises(StageError, match="CorruptManifest"):
        store.manifest(Stage.PREPARE)


def test_two_pods_may_write_one_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods on two nodes share a claim, and their processes have the same number: usually 1."""
    path = tmp_path / "claim.json"
    sync = os.fsync

    def other_pod_writes_meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        write_atomically(path, b"the other pod's, which is longer")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", other_pod_writes_meanwhile)
    write_atomically(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert [left.name for left in tmp_path.iterdir()] == ["claim.json"]


def test_links_are_never_published(tmp_path: Path) -> None:
    store = storage(tmp_path)
    folder = store.new_folder(Stage.PREPARE)
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(StageError, match="UnsafeFile"):
        store.publish(Stage.PREPARE, folder, "i", StageResult(stage=Stage.PREPARE))


@pytest.mark.parametrize("path", ["../other", "a/../../other", "/etc/passwd"])
def test_paths_cannot_lead_out(tmp_path: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(StageError, match="UnsafePath"):
        resolve_inside(tmp_path / "root", path)


def test_a_link_cannot_lead_out_of_a_claim(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    (tmp_path / "claim" / "model").symlink_to("/etc")
    run = RunSpec(
        storage=StorageLocation(root="/s", prefix="p"),
        model=Model(source="hf://a/b"),
        datasets=[Dataset(name="a", source="hf://a/b")],
        claims={"c": str(tmp_path / "claim")},
    )
    with pytest.raises(StageError, match="UnsafePath"):
        local_path("pvc://c/model", run)
    with pytest.raises(StageError, match="SourceNotFound"):
        local_path("pvc://c/nothing", run)
    with pytest.raises(StageError, match="ClaimNotMounted"):
        local_path("pvc://other/x", run)


def test_an_older_jobs_stage_is_copied_and_verified(tmp_path: Path) -> None:
    older = storage(tmp_path, prefix="jobs/older")
    publish(older)
    manifest = older.manifest(Stage.PREPARE)
    assert manifest is not None
    copy_published(older, manifest, tmp_path / "new")
    assert (tmp_path / "new" / "sub" / "file").read_text() == "content"
    (older.content(manifest) / "sub" / "file").write_text("changed")
    with pytest.raises(StageError, match="CorruptArtifact"):
        copy_published(older, manifest, tmp_path / "again")


def test_a_folders_digest_is_what_sha256sum_would_print(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "b").write_text("2")
    (tmp_path / "a").write_text("1")
    lines = f"{hashlib.sha256(b'1').hexdigest()}  a\n{hashlib.sha256(b'2').hexdigest()}  b\n"
    assert folder_digest(hash_folder(tmp_path)) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_cached_folder_is_there_at_once_and_filled_once(tmp_path: Path) -> None:
    seen: list[bool] = []

    def fill(aside: Path) -> None:
        seen.append((tmp_path / "cache" / "kind" / "digest").exists())
        (aside / "file").write_text("content")

    for writer in ("one", "two"):
        assert (storage(tmp_path, writer).cached("kind", "digest", fill) / "file").read_text() == "content"
    assert seen == [False]
    assert [path.name for path in (tmp_path / "cache" / "kind").iterdir()] == ["digest"]


def test_what_was_half_filled_counts_for_nothing_and_the_first_of_two_writers_counts(tmp_path: Path) -> None:
    target = tmp_path / "cached"
    with pytest.raises(OSError, match="too long"), filled_aside(target, "one") as aside:
        (aside / ("name" * 1000)).write_text("half")
    assert list(tmp_path.iterdir()) == []
    with filled_aside(target, "one") as late:
        (late / "file").write_text("late")
        with filled_aside(target, "two") as first:
            (first / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["cached"]


def test_a_recorded_file_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "cached"
    assert not is_whole(folder, recorded=True)
    with filled_aside(folder, "one") as aside:
        (aside / "file").write_text("content")
        write_record(aside / "file")
    assert is_whole(folder, recorded=True)
    (folder / "file").write_text("damaged")
    assert is_whole(folder)
    assert not is_whole(folder, recorded=True)
    assert not folder.exists()


def run_spec(**changes: object) -> RunSpec:
    body: dict[str, object] = {
        "storage": {"root": "/s", "prefix": "p"},
        "model": {"source": "hf://a/b"},
        "datasets": [{"name": "a", "source": "hf://a/b"}],
    }
    return RunSpec.model_validate(body | changes)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"training": {"seed": 7}}, {Stage.TRAIN}),
        ({"export": {"gguf": ["Q8_0"]}}, {Stage.PREPARE, Stage.PACKAGE}),
        ({"evaluation": {"minSamples": 5}}, {Stage.EVALUATE}),
        ({"training": {"maxLength": 64}}, {Stage.PREPARE, Stage.TRAIN}),
        ({"checkpoints": {"keep": 5}}, set()),
        ({"method": {"sft": {}}, "adapter": {"lora": {}}}, set()),
        ({"method": {"sft": {"loss": "Completion"}}}, {Stage.PREPARE, Stage.TRAIN}),
        ({"quantization": {"type": "NF4", "nf4": {"computeDtype": "Float16"}}}, {Stage.TRAIN}),
        ({"model": {"source": "hf://a/b", "tokenSecretRef": {"name": "s", "key": "k"}}}, set()),
    ],
)
def test_a_stages_inputs_name_what_it_follows_from(change: dict[str, object], differs: set[Stage]) -> None:
    before = {stage: inputs_digest(run_spec(), stage, None) for stage in Stage}
    after = {stage: inputs_digest(run_spec(**change), stage, None) for stage in Stage}
    assert {stage for stage in Stage if before[stage] != after[stage]} == differs


def test_links_are_followed_as_far_as_the_root_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshot"
    blobs.mkdir(parents=True)
    snapshot.mkdir()
    (blobs / "x").write_text("content")
    records = [record.model_copy(update={"path": "file"}) for record in hash_folder(blobs)]
    (snapshot / "file").symlink_to("../blobs/x")
    monkeypatch.chdir(tmp_path)
    for folder, root in ((snapshot, tmp_path / "cache"), (Path("cache/snapshot"), Path("/")), (Path("cache/snapshot"), Path("cache"))):
        assert verify_files(folder, records, root) is None
    with pytest.raises(StageError, match="UnsafePath"):
        verify_files(Path("cache/snapshot"), records)
