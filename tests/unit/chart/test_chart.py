"""What the chart grants and sets, without helm: rights as the code uses them, settings that the operator reads, values with a schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from finetune_operator.core.settings import Settings
from finetune_operator.kube import permissions

CHART = Path(__file__).resolve().parents[3] / "charts" / "finetune-operator"
TEMPLATES = CHART / "templates"


def flat(rules: permissions.Rules) -> set[tuple[str, str, str]]:
    return {(group, resource, verb) for group, resources in rules.items() for resource, verbs in resources.items() for verb in verbs}


def granted(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }


def shared_rules() -> list[dict[str, Any]]:
    text = (TEMPLATES / "_helpers.tpl").read_text()
    found = re.search(r'define "finetune.rules" -}}\n(.*?)\n{{- end }}', text, re.DOTALL)
    assert found
    return list(yaml.safe_load(found[1]))


def role(name: str) -> list[dict[str, Any]]:
    lines = [line for line in (TEMPLATES / "rbac.yaml").read_text().splitlines() if not line.strip().startswith("{{")]
    text = re.sub(r'{{ include "finetune.clusterName" \(list "([^"]*)" \.\) }}', r"\1", "\n".join(lines))
    for document in yaml.safe_load_all(re.sub(r"{{[^}]*}}", "templated", text)):
        if document and document["kind"].endswith("Role") and document["metadata"]["name"] == name:
            return list(document["rules"])
    raise AssertionError(f"no role {name}")


def test_namespaced_rights_are_those_the_code_uses() -> None:
    assert granted(shared_rules()) == flat(permissions.TENANTS)


def test_rights_outside_namespaces_are_those_the_code_uses() -> None:
    assert granted(role("finetune-operator-cluster")) == flat(permissions.CLUSTER)


def test_rights_in_the_operators_own_namespace_are_those_the_code_uses() -> None:
    assert granted(role("finetune-operator-own")) == flat(permissions.OWN_NAMESPACE)


def test_no_right_is_a_wildcard_and_secrets_are_one_by_name() -> None:
    everything = [*shared_rules(), *role("finetune-operator-cluster"), *role("finetune-operator-own")]
    assert not any("*" in rule[member] for rule in everything for member in ("apiGroups", "resources", "verbs"))
    with_secrets = [rule for rule in everything if "secrets" in rule["resources"]]
    assert [rule.get("resourceNames") for rule in with_secrets] == [["templated"]]
    assert not {"escalate", "bind", "impersonate"} & {verb for rule in everything for verb in rule["verbs"]}
    assert "pods/exec" not in {resource for rule in everything for resource in rule["resources"]}


def test_what_has_one_name_is_granted_by_name() -> None:
    """RBAC cannot name what a create is about."""
    for rule in role("finetune-operator-own"):
        assert rule["verbs"] == ["create"] or rule.get("resourceNames"), rule


def test_each_role_for_people_is_of_use_by_itself() -> None:
    text = (TEMPLATES / "roles-for-people.yaml").read_text()
    for verbs in re.findall(r"verbs: \[(.*)\]", text):
        assert verbs.startswith("get, list, watch")


def test_the_settings_that_the_chart_writes_are_ones_the_operator_has() -> None:
    text = (TEMPLATES / "settings.yaml").read_text()
    written = set(re.findall(r'^\s+"([a-z_]+)" ', text, re.MULTILINE))
    assert written
    assert written <= set(Settings.model_fields)


def test_every_value_is_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    assert schema["additionalProperties"] is False


def test_the_operators_pods_hold_to_restricted() -> None:
    text = (TEMPLATES / "deployment.yaml").read_text()
    for needed in (
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "drop: [ALL]",
        "RuntimeDefault",
    ):
        assert needed in text
