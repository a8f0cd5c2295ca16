"""The chart as Helm renders it: values that are null, odd or wrong, and releases beside each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.core.settings import Settings

from tests.unit.chart.helm import CHART, cluster_with, objects, rendered, template

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
APP_VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]


def paths(values: dict[str, Any], before: str = "") -> Iterator[str]:
    """Every value and every section of values, dotted."""
    for name, value in values.items():
        yield f"{before}{name}"
        if isinstance(value, dict):
            yield from paths(value, f"{before}{name}.")


def one(text: str, kind: str, name: str) -> dict[str, Any]:
    return next(item for item in objects(text) if (item["kind"], item["metadata"]["name"]) == (kind, name))


def settings_of(text: str) -> Settings:
    """As the operator reads what is rendered."""
    config = one(text, "ConfigMap", "finetune-operator")
    return Settings.model_validate(yaml.safe_load(config["data"]["settings.json"]))


def container_of(text: str) -> dict[str, Any]:
    return dict(one(text, "Deployment", "finetune-operator")["spec"]["template"]["spec"]["containers"][0])


def without_checksum(text: str) -> str:
    return re.sub(r"checksum/settings: .*", "", text)


@pytest.fixture(scope="module")
def default() -> str:
    return rendered()


# ------------------------------------------------------------------------------------------------------------------------ nulls


LEAVES_SOMETHING_ELSE = ("images", "resources")


@pytest.mark.parametrize("path", [path for path in paths(VALUES) if not path.startswith(LEAVES_SOMETHING_ELSE)])
def test_null_is_the_default(default: str, path: str) -> None:
    assert rendered(f"{path}=null") == default


@pytest.mark.parametrize("path", [path for path in paths(VALUES) if path.startswith("images")])
def test_an_image_without_its_tag_is_the_charts_version_and_never_latest(default: str, path: str) -> None:
    images = [name for name in ("operator", "trainer", "server") if f"images.{name}".startswith(path)]
    untagged = [name for name in ("operator", "trainer", "server") if path == f"images.{name}.tag"] or images
    wanted = default
    for name in untagged:
        wanted = wanted.replace(f"finetune-operator/{name}:dev", f"finetune-operator/{name}:{APP_VERSION}")
    assert without_checksum(rendered(f"{path}=null")) == without_checksum(wanted)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("resources", {}),
        ("resources.limits", {"requests": VALUES["resources"]["requests"]}),
        ("resources.limits.memory", {"limits": {}, "requests": VALUES["resources"]["requests"]}),
        ("resources.requests.cpu", {"limits": VALUES["resources"]["limits"], "requests": {"memory": "256Mi"}}),
    ],
)
def test_resources_that_are_taken_away_are_gone(path: str, left: dict[str, Any]) -> None:
    assert container_of(rendered(f"{path}=null", "crds.enabled=false"))["resources"] == left


def test_all_nulls_at_once_are_an_operator_that_starts() -> None:
    text = rendered(*(f"{name}=null" for name in VALUES))
    assert settings_of(text) == Settings(
        trainer_image=f"finetune-operator/trainer:{APP_VERSION}",
        server_image=f"finetune-operator/server:{APP_VERSION}",
        status_url="https://finetune-status.finetune-system.svc:8443",
    )
    crds = [item for item in objects(text) if item["kind"] == "CustomResourceDefinition"]
    assert [crd["metadata"]["annotations"]["helm.sh/resource-policy"] for crd in crds] == ["keep", "keep"]


def test_nulls_below_a_chart_that_has_this_one_as_its_part(tmp_path: Path, default: str) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "finetune-operator").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: platform\nversion: 1.0.0\n")
    nulls = {name: None for name in VALUES if name not in LEAVES_SOMETHING_ELSE}
    (tmp_path / "values.yaml").write_text(json.dumps({"finetune-operator": nulls}))
    assert settings_of(rendered(chart=tmp_path)) == settings_of(default)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"policies": None, "watch_namespaces": None, "termination_grace_s": None}, Settings()),
        ({"policies": {"team-a": None}}, Settings()),
        ({"policies": {"team-a": {"images": None}}}, Settings.model_validate({"policies": {"team-a": {}}})),
    ],
)
def test_the_operator_takes_a_null_for_absent(given: dict[str, Any], read: Settings) -> None:
    """Whoever writes its file: one that does not start is found when the pods crash, after an upgrade that succeeded."""
    assert Settings.model_validate(given) == read


def test_false_is_kept(default: str) -> None:
    text = rendered("crds.keep=false", "podDisruptionBudget.enabled=false", "networkPolicy.enabled=false", "aggregateClusterRoles=false")
    assert "helm.sh/resource-policy" in default
    assert "helm.sh/resource-policy" not in text
    assert {"PodDisruptionBudget", "NetworkPolicy"}.isdisjoint(item["kind"] for item in objects(text))
    assert "aggregate-to" not in text


# ------------------------------------------------------------------------------------------------------------- typos and wrong types


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("replica=3", "replica"),
        ("replicas=two", "/replicas"),
        ("images.operator.tag=110", "/images/operator/tag"),
        ("images.pullSecrets={regcred}", "/images/pullSecrets/0"),
        ("podAnnotations.a=1", "/podAnnotations/a"),
        ("podLabels.a=true", "/podLabels/a"),
        ("crds.keeep=true", "/crds"),
        ("watchNamespaces=team-a", "/watchNamespaces"),
        ("watchNamespaces={team-*}", "/watchNamespaces/0"),
        ("watchNamespaces={}", "/watchNamespaces/0"),
        ("policies.team-a.image={a}", "/policies/team-a"),
        ("policies.team-a.images={}", "/policies/team-a/images/0"),
        ("policies.team_a.images={a}", "invalid propertyName 'team_a'"),
        ("policies.Team-a.images={a}", "invalid propertyName 'Team-a'"),
        ("policies.team-*.images={a}", "invalid propertyName 'team-*'"),
        ("resources.limit.memory=1Gi", "/resources"),
        ("resources.limits.memory=1GB", "/resources/limits/memory"),
        ("tolerations[0].kee=gpu", "/tolerations/0"),
        ("affinity.podAntiAfinity.a=b", "/affinity"),
        ("terminationGracePeriodSeconds=2m", "/terminationGracePeriodSeconds"),
    ],
)
def test_a_typo_or_a_wrong_type_is_refused_with_its_path(value: str, path: str) -> None:
    refused = template(value)
    assert refused.returncode != 0
    assert path in refused.stderr


@pytest.mark.parametrize("namespace", ["*", "team-a", "0"])
def test_a_policy_of_a_namespace_or_of_all_is_taken(namespace: str) -> None:
    assert template(f"policies.{namespace}.images={{a/}}").returncode == 0


def test_what_a_pod_takes_for_resources_is_taken() -> None:
    text = rendered(
        "resources.requests.cpu=1", "resources.limits.memory=129e6", "resources.limits.example\\.com/gpu=1", "crds.enabled=false"
    )
    assert container_of(text)["resources"]["requests"]["cpu"] == 1


def test_labels_and_annotations_of_ones_own_take_none_of_ours() -> None:
    text = rendered(
        *("podLabels.app\\.kubernetes\\.io/name=mine", "podLabels.team=a", "podAnnotations.checksum/settings=mine", "crds.enabled=false")
    )
    deployment = one(text, "Deployment", "finetune-operator")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert labels["team"] == "a"
    assert deployment["template"]["metadata"]["annotations"]["checksum/settings"] != "mine"


# --------------------------------------------------------------------------------------------------------- releases beside each other


def identities(text: str) -> set[tuple[str, str, str]]:
    return {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in objects(text)}


@pytest.mark.parametrize(("release", "namespace"), [("second", "sys-b"), ("first", "sys-b"), ("sys-a.first", "sys-b")])
def test_two_releases_have_nothing_in_common(release: str, namespace: str) -> None:
    first = rendered("watchNamespaces={team-a}", "crds.enabled=false", release="first", namespace="sys-a")
    second = rendered("watchNamespaces={team-b}", "crds.enabled=false", release=release, namespace=namespace)
    assert identities(first).isdisjoint(identities(second))


def test_every_binding_leads_to_a_role_and_an_account_of_its_own_release() -> None:
    for values in (["watchNamespaces={team-a}"], []):
        text = rendered(*values, release="x", namespace="sys")
        there = identities(text)
        for item in objects(text):
            if item["kind"].endswith("Binding"):
                role = item["roleRef"]
                where = "" if role["kind"] == "ClusterRole" else item["metadata"]["namespace"]
                assert (role["kind"], where, role["name"]) in there
                assert {("ServiceAccount", subject["namespace"], subject["name"]) for subject in item["subjects"]} <= there


def claims_of(*values: str) -> list[dict[str, Any]]:
    """What a release `first` in namespace sys-a leaves in the cluster to be found, beside a binding of somebody else."""
    text = rendered(*values, release="first", namespace="sys-a")
    return [{"metadata": {"name": "somebody-elses"}}, *(item for item in objects(text) if item["kind"] == "ClusterRoleBinding")]


EVERYTHING: tuple[str, ...] = ()
TEAMS = ("watchNamespaces={team-a,team-b}",)
FIRST = "release first in namespace sys-a"


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (EVERYTHING, ("watchNamespaces={team-c}", "crds.enabled=false"), f"{FIRST} watches all namespaces already"),
        (EVERYTHING, ("crds.enabled=false",), f"{FIRST} watches all namespaces already"),
        (TEAMS, ("crds.enabled=false",), f"{FIRST} watches team-a, team-b already"),
        (TEAMS, ("watchNamespaces={team-b,team-c}", "crds.enabled=false"), f"{FIRST} watches team-b already"),
        (TEAMS, ("watchNamespaces={team-c}",), f"crds.enabled: the CRDs belong to {FIRST}"),
        (TEAMS, ("watchNamespaces={team-c}", "crds.enabled=false"), ""),
        ((*TEAMS, "crds.enabled=false"), ("watchNamespaces={team-c}",), ""),
    ],
)
def test_a_second_release_stands_beside_the_first_or_is_told_why_not(first: tuple[str, ...], second: tuple[str, ...], words: str) -> None:
    with cluster_with(claims_of(*first), {"sys-a": "first"}) as server:
        done = template(*second, release="second", namespace="sys-b", server=server)
    assert (done.returncode == 0) == (not words), done.stderr
    assert words in done.stderr


def test_a_second_release_in_one_namespace_is_told_so() -> None:
    with cluster_with(claims_of(*TEAMS), {"sys-a": "first"}) as server:
        done = template("watchNamespaces={team-c}", "crds.enabled=false", release="second", namespace="sys-a", server=server)
    assert f"{FIRST} is there already, and a namespace holds one release" in done.stderr


@pytest.mark.parametrize("values", [EVERYTHING, TEAMS])
def test_a_release_is_not_in_its_own_way(values: tuple[str, ...]) -> None:
    with cluster_with(claims_of(*values), {"sys-a": "first"}) as server:
        assert rendered(release="first", namespace="sys-a", server=server)


def test_what_a_deleted_namespace_left_behind_is_in_nobodys_way() -> None:
    with cluster_with(claims_of(*EVERYTHING), {}) as server:
        assert rendered(release="second", namespace="sys-b", server=server)
