"""The store drops old news, forgets what is gone, and finds objects by the key they concern."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.core import names
from finetune_operator.engine.store import MODEL, Key, Name, Store, job_of_refusal, keys_of, slimmed

JOB_KEY = Key("FineTuneJob", "team", "demo")
MODEL_KEY = Key(MODEL, "team", "bot")


def make(kind: str = "Job", name: str = "demo-train-1", *, uid: str = "u1", version: int = 5, **rest: Any) -> dict[str, Any]:
    labels = rest.pop("labels", {names.JOB_LABEL: "demo"})
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": labels,
        **rest.pop("metadata", {}),
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest}


def version_of(store: Store, name: str = "demo-train-1") -> str | None:
    live = store.get("Job", "team", name)
    return live["metadata"]["resourceVersion"] if live else None


def test_a_new_object_concerns_its_owners_key() -> None:
    assert Store().put(make()) == {JOB_KEY}


def test_older_news_is_dropped() -> None:
    store = Store()
    store.put(make(version=9, status={"active": 1}))
    assert store.put(make(version=8)) == set()
    assert version_of(store) == "9"


def test_the_echo_of_an_own_write_is_no_news() -> None:
    store = Store()
    store.put(make(version=9))
    assert store.put(make(version=9)) == set()


def test_a_change_that_no_pass_looks_at_is_taken_without_a_pass() -> None:
    store = Store()
    store.put(make(version=5, metadata={"managedFields": [1]}))
    assert store.put(make(version=6, metadata={"managedFields": [2]})) == set()
    assert version_of(store) == "6"


def test_versions_are_compared_as_numbers() -> None:
    store = Store()
    store.put(make(version=9))
    assert store.put(make(version=10, status={"active": 1})) == {JOB_KEY}


def test_a_late_answer_does_not_bring_back_what_was_deleted() -> None:
    store = Store()
    store.put(make(version=5))
    assert store.deleted(make(version=8)) == {JOB_KEY}
    assert store.put(make(version=7)) == set()
    assert version_of(store) is None


def test_a_read_that_came_after_what_is_known_is_believed_whatever_its_version() -> None:
    store = Store()
    store.put(make(version=9))
    assert store.put(make(version=7, status={"restored": True}), read_after=store.moment) == {JOB_KEY}
    assert version_of(store) == "7"


def test_a_read_that_something_overtook_is_old_news() -> None:
    store = Store()
    store.put(make(version=7))
    asked = store.moment
    store.put(make(version=9))
    assert store.put(make(version=8), read_after=asked) == set()
    assert version_of(store) == "9"


def test_what_left_the_watch_by_its_label_is_back_once_it_was_read() -> None:
    store = Store()
    store.put(make(version=5))
    store.deleted(make(version=6))
    assert store.put(make(version=6)) == set()
    assert store.put(make(version=6), read_after=store.moment) == {JOB_KEY}


def test_late_news_that_a_label_was_lost_does_not_take_what_has_it_again() -> None:
    store = Store()
    store.put(make(version=5))
    store.put(make(version=7))
    assert store.deleted(make(version=6)) == set()
    assert version_of(store) == "7"
    assert store.deleted(make(version=8)) == {JOB_KEY}


def test_a_deletion_that_came_while_it_was_read_stands() -> None:
    store = Store()
    store.put(make(version=5))
    asked = store.moment
    store.deleted(make(version=6))
    assert store.put(make(version=5), read_after=asked) == set()


def test_after_a_rewind_older_versions_of_that_kind_count_and_those_of_others_do_not() -> None:
    store = Store()
    store.put(make(version=9))
    store.put(make("Pod", "p", uid="p", version=9))
    store.rewind("Job")
    assert store.put(make(version=3, status={"active": 1})) == {JOB_KEY}
    assert store.put(make("Pod", "p", uid="p", version=3)) == set()
    assert (store.newest("Job"), store.newest("Pod")) == (3, 9)


def test_an_object_that_cannot_be_read_is_left_aside_and_known_by_its_version() -> None:
    store = Store()
    store.put(make(version=5))
    broken = make(version=6, metadata={"ownerReferences": [{"uid": "without a kind"}]})
    assert store.put(broken) == {JOB_KEY}, "what it concerned before is planned without it"
    assert store.unreadable == 1
    assert store.version(Name("Job", "team", "demo-train-1")) == 6
    assert store.of(JOB_KEY, "Job") == []
    assert store.put(make(version=7)) == {JOB_KEY}


def test_the_deletion_of_a_former_object_leaves_the_present_one() -> None:
    store = Store()
    store.put(make(uid="new", version=9))
    assert store.deleted(make(uid="old", version=12)) == set()
    assert version_of(store) == "9"


def test_a_successor_of_the_same_name_replaces_its_predecessor() -> None:
    store = Store()
    store.put(make(uid="old", version=5))
    store.put(make(uid="new", version=6))
    assert store.uid("Job", "team", "demo-train-1") == "new"
    assert store.put(make(uid="old", version=4)) == set()


def test_forgetting_by_uid_spares_a_successor() -> None:
    store = Store()
    store.put(make(uid="new"))
    assert store.forget(Name("Job", "team", "demo-train-1"), "old") == set()
    assert version_of(store) == "5"


def test_children_are_found_by_key_and_kind_in_order() -> None:
    store = Store()
    for name in ("demo-train-2", "demo-train-1"):
        store.put(make(name=name, uid=name))
    store.put(make("Pod", "demo-pod", uid="p"))
    store.put(make(name="other-train-1", uid="o", labels={names.JOB_LABEL: "other"}))
    assert [live["metadata"]["name"] for live in store.of(JOB_KEY, "Job")] == ["demo-train-1", "demo-train-2"]


def test_a_label_that_moves_makes_both_keys_dirty() -> None:
    store = Store()
    store.put(make())
    moved = store.put(make(version=6, labels={names.JOB_LABEL: "other"}))
    assert moved == {JOB_KEY, Key("FineTuneJob", "team", "other")}
    assert store.of(JOB_KEY, "Job") == []


def test_what_is_read_can_be_changed_without_changing_the_store() -> None:
    store = Store()
    store.put(make(status={"active": 1}))
    read = store.get("Job", "team", "demo-train-1")
    assert read is not None
    read["status"]["active"] = 2
    again = store.get("Job", "team", "demo-train-1")
    assert again is not None
    assert again["status"] == {"active": 1}


def test_a_fact_is_made_once_for_each_state_of_an_object() -> None:
    store, read = Store(), []

    def suspended(live: dict[str, Any]) -> bool:
        read.append(live["metadata"]["name"])
        return bool(live["spec"]["suspend"])

    store.put(make(name="a", spec={"suspend": True}))
    store.put(make(name="b", uid="u2", spec={"suspend": False}))
    assert sorted(store.facts("Job", suspended)) == sorted(store.facts("Job", suspended)) == [False, True]
    assert sorted(read) == ["a", "b"]
    store.put(make(name="a", version=6, spec={"suspend": False}))
    assert store.facts("Job", suspended) == [False, False]
    store.forget(Name("Job", "team", "b"), "u2")
    assert store.facts("Job", suspended) == [False]
    assert sorted(read) == ["a", "a", "b"]


def test_phases_are_counted_and_uncounted() -> None:
    store = Store()
    store.put(make("FineTuneJob", "demo", status={"phase": "Training"}))
    store.put(make("FineTuneJob", "demo", version=6, status={"phase": "Succeeded"}))
    assert dict(store.phases("FineTuneJob")) == {"Training": 0, "Succeeded": 1}


OWNER = {"apiVersion": names.API_VERSION, "kind": "ModelVersion", "name": "my-v-bot-v12", "uid": "m"}
KEYS = {
    "a job is its own key": (make("FineTuneJob", "demo", labels={}), {JOB_KEY}),
    "a version concerns its model and the job it came from": (
        make("ModelVersion", "bot-v1", labels={}, spec={"model": "bot", "lineage": {"jobRef": "demo"}}),
        {MODEL_KEY, JOB_KEY},
    ),
    "a server pod concerns its model": (make("Pod", "bot-v1-x", labels={names.MODEL_LABEL: "bot"}), {MODEL_KEY}),
    "a claim handed over concerns job and model": (
        make("PersistentVolumeClaim", "c", metadata={"ownerReferences": [OWNER]}),
        {JOB_KEY, Key(MODEL, "team", "my-v-bot")},
    ),
    "a refusal concerns the job whose stage it is about": (
        make("Event", "e", labels={}, involvedObject={"name": "demo-train-1", "uid": "j"}),
        {JOB_KEY},
    ),
    "an Event about nothing concerns nobody": (make("Event", "e", labels={}), set()),
    "an Event about something without a name": (make("Event", "e", labels={}, involvedObject={"kind": "Job"}), set()),
    "an autoscaler concerns the model whose servers it scales": (
        make("HorizontalPodAutoscaler", "h", labels={}, spec={"scaleTargetRef": {"kind": "Deployment", "name": "bot-v1"}}),
        {MODEL_KEY},
    ),
    "an autoscaler of something else concerns nobody": (
        make("HorizontalPodAutoscaler", "h", labels={}, spec={"scaleTargetRef": {"kind": "StatefulSet", "name": "bot-v1"}}),
        set(),
    ),
    "a foreign object concerns nobody": (make("Pod", "x", labels={}), set()),
}


@pytest.mark.parametrize("case", KEYS)
def test_whose_pass_an_object_matters_to(case: str) -> None:
    live, wanted = KEYS[case]
    assert set(keys_of(live)) == wanted


@pytest.mark.parametrize(("name", "job"), [("my-job-train-12", "my-job"), ("train-1", None), ("job-train-x", None), ("plain", None)])
def test_the_job_of_a_stage_job_by_name(name: str, job: str | None) -> None:
    assert job_of_refusal(name) == job


def test_a_jobs_template_never_enters_memory() -> None:
    slim = slimmed(make(spec={"template": {"run": "x" * 10_000}, "suspend": True}, status={"active": 1}))
    assert slim["spec"] == {"suspend": True}
    assert slim["status"] == {"active": 1}


def test_a_pod_keeps_what_tells_how_it_fares() -> None:
    container = {"name": "trainer", "state": {"terminated": {"exitCode": 1}}, "imageID": "x" * 500}
    pod = make(
        "Pod", "p", spec={"nodeName": "n", "containers": [{}]}, status={"phase": "Failed", "podIPs": [], "containerStatuses": [container]}
    )
    slim = slimmed(pod)
    assert slim["spec"] == {"nodeName": "n"}
    kept = {"name": "trainer", "state": {"terminated": {"exitCode": 1}}}
    assert slim["status"] == {"phase": "Failed", "containerStatuses": [kept]}


def test_a_custom_resource_is_kept_but_for_bookkeeping() -> None:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "own": "1"}
    live = make("FineTuneJob", "demo", metadata={"managedFields": [], "annotations": annotations}, spec={"a": 1})
    slim = slimmed(live)
    assert slim["spec"] == {"a": 1}
    assert slim["metadata"]["annotations"] == {"own": "1"}
    assert "managedFields" not in slim["metadata"]
