"""Lints, renders and validates the chart without a cluster.

    chart.py render CHART VALUES...    renders with each file of values, and prints a JSON object:
                                       for each file its manifests, or why Helm refuses it
    chart.py validate VERSION...       reads a JSON list of manifests, and prints a JSON list of what
                                       is wrong with them, by Kubernetes' and the operator's schemas
    chart.py text CHART TEMPLATE       prints what a template renders to
    chart.py readme CHART              prints the README of the chart, made of values.yaml
    chart.py conform SCHEMA            reads a JSON object of documents by name, and prints a JSON list of
                                       where they are not as a JSON Schema wants them
"""

import json
import pathlib
import re
import sys

import yaml

CRDS = pathlib.Path(__file__).parent / "crds"
# Of cert-manager, whose schemas are not here.
UNCHECKED = {"cert-manager.io/v1"}


def render(chart_path, files):
    import helm_python as helm

    results = {}
    with helm.Chart.load(chart_path) as chart:
        for file in files:
            values = yaml.safe_load(pathlib.Path(file).read_text()) or {}
            result = results[file] = {"lint": [], "notes": "", "manifests": []}
            try:
                report = helm.lint(chart_path, values, strict=True, kube_version="1.29.0")
                result["lint"] = [
                    message
                    for message in report["messages"]
                    if message["severity"] not in ("INFO", "info", 1)
                ]
                rendered = chart.render(values, name="demo", namespace="metering")
            except helm.HelmError as error:
                result["refused"] = str(error)
                continue
            for path, text in sorted(rendered.items()):
                if path.endswith("NOTES.txt"):
                    result["notes"] = text
                    continue
                for manifest in yaml.safe_load_all(text):
                    if manifest:
                        manifest["__source"] = path
                        result["manifests"].append(manifest)
    return results


def text(chart_path, template):
    import helm_python as helm

    with helm.Chart.load(chart_path) as chart:
        rendered = chart.render({}, name="demo", namespace="shop")
        return rendered[f"{chart.name}/templates/{template}"].strip() + "\n"


def closed(schema):
    """A schema of a CRD that refuses unknown fields, as kubectl does with --validate=strict."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    is_object = isinstance(result.get("properties"), dict) and result.get("type") == "object"
    if is_object and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if result.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result


def operator_schemas():
    schemas = {}
    for file in CRDS.glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        for version in crd["spec"]["versions"]:
            key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            schemas[key] = schema
    return schemas


def validate(manifests, versions):
    import jsonschema
    import kubernetes_validate

    problems = []
    crds = operator_schemas()
    for manifest in manifests:
        source = manifest.pop("__source", "")
        kind = (manifest["apiVersion"], manifest["kind"])
        where = f"{source} {kind[1]}/{manifest['metadata'].get('name')}"
        if kind[0] in UNCHECKED:
            continue
        if kind in crds:
            errors = jsonschema.Draft7Validator(crds[kind]).iter_errors(manifest)
            problems += [f"{where}: {error.json_path}: {error.message}" for error in errors]
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(step) for step in error.path)
                problems.append(f"{where} ({version}): {path}: {error.message}")
    return problems


def described(lines):
    """Keys with their comments: a comment that begins with `--` belongs to the key below it."""
    comment, path = [], []
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = [stripped.removeprefix("# --").strip()]
        elif stripped.startswith("#") and comment:
            comment.append(stripped.removeprefix("#").strip())
        elif match := re.match(r"( *)([A-Za-z_]+):", line):
            depth = len(match[1]) // 2
            path = [*path[:depth], match[2]]
            if comment:
                yield list(path), " ".join(comment)
            comment = []
        else:
            comment = []


def readme(chart_path):
    chart_path = pathlib.Path(chart_path)
    chart = yaml.safe_load((chart_path / "Chart.yaml").read_text())
    text = (chart_path / "values.yaml").read_text()
    values = yaml.safe_load(text)
    rows = []
    for path, comment in described(text.splitlines()):
        default = values
        for step in path:
            default = default[step]
        shown = json.dumps(default, ensure_ascii=False)
        shown = "see `values.yaml`" if len(shown) > 60 else f"`{shown}`"
        rows.append(f"| `{'.'.join(path)}` | {shown} | {comment} |")
    table = "\n".join(rows)
    return f"""# Taffrail's chart

{chart["description"]}.

```sh
helm install taffrail helm/taffrail --namespace taffrail --create-namespace
kubectl label namespace shop taffrail.dev/inject=enabled
kubectl rollout restart deployment --namespace shop
```

[docs/kubernetes.md](../../docs/kubernetes.md) goes from an empty cluster to a dashboard with data. It needs Kubernetes 1.29 or newer.

## Values

| value | default | meaning |
|---|---|---|
{table}
"""


def conform(schema, documents):
    import jsonschema

    validator = jsonschema.Draft7Validator(json.loads(pathlib.Path(schema).read_text()))
    problems = []
    for name, document in documents.items():
        for error in validator.iter_errors(document):
            # Of several forms the likeliest is the one that fits up to the deepest place.
            while error.context:
                error = max(error.context, key=lambda it: len(it.absolute_path))
            problems.append(f"{name}: {error.json_path}: {error.message}")
    return problems


def main():
    match sys.argv[1:]:
        case ["render", chart, *files]:
            print(json.dumps(render(chart, files)))
        case ["validate", *versions]:
            print(json.dumps(validate(json.load(sys.stdin), versions)))
        case ["text", chart, template]:
            print(text(chart, template), end="")
        case ["readme", chart]:
            print(readme(chart), end="")
        case ["conform", schema]:
            print(json.dumps(conform(schema, json.load(sys.stdin))))
        case _:
            sys.exit(__doc__)


main()
