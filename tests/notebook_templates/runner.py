"""Runs one notebook many times: `python runner.py notebook.py`, jobs as JSON on stdin, results as JSON in a file.

A job is {"snapshot": path or null, "table": [schema, name] or null, "widgets": {name: attributes}}. Widgets stand in
for what a person would have chosen; they replace whole cells, so that all names a cell defines must be given. This
file runs outside of the test process, beside nothing but the notebook.
"""

import html
import json
import os
import re
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace
from typing import Any

import duckdb
from marimo._runtime.control_flow import MarimoStopError


def load(path: str) -> Any:
    spec = spec_from_file_location("notebook", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["notebook"] = module
    spec.loader.exec_module(module)
    return module.app


def callout(output: Any) -> str | None:
    """The text of a callout, which is all that mo.stop shows in these notebooks."""
    text = getattr(output, "text", "")
    if "<marimo-callout-output" not in text[:40]:
        return None
    content = html.unescape(text)
    content = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), content)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", content.replace("\\n", " ")))


def writes(con: Any) -> list[str]:
    """What a notebook could try to change the warehouse: the statements that were let through."""
    passed = []
    for statement in ("CREATE TABLE intruder (x INTEGER)", "CREATE SCHEMA intruders", "CREATE VIEW peep AS SELECT 1"):
        try:
            con.execute(statement)
        except duckdb.Error as error:
            if "read-only" not in str(error):
                passed.append(f"{statement}: {error}")
        else:
            passed.append(statement)
    return passed


def charts(defs: Any) -> dict[str, str]:
    """Draw every column; returns what each became."""
    drawn = {}
    for name, column_type in defs["columns"].iter_rows():
        draw = {"number": "histogram", "time": "over_time", "other": "top_values"}[defs["kind_of"](column_type)]
        try:
            chart = defs[draw](defs["con"], defs["source"], name)
        except MarimoStopError as stop:
            chart = stop.output
        drawn[name] = draw if hasattr(chart, "to_dict") and chart.to_dict() else "callout"
    return drawn


def run(app: Any, job: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    os.environ.pop("MARIMOHUB_SNAPSHOT", None)
    if job["snapshot"]:
        os.environ["MARIMOHUB_SNAPSHOT"] = job["snapshot"]
    chosen: dict[str, Any] = {name: SimpleNamespace(**widget) for name, widget in job.get("widgets", {}).items()}
    if job.get("table"):
        tables = rows.setdefault(job["snapshot"], app.run()[1]["tables"])
        row = next(row for row in tables.to_dicts() if [row["schema"], row["name"]] == job["table"])
        chosen["table_picker"] = SimpleNamespace(value=row, selected_key=".".join(job["table"]))
        if "every_row" in chosen:
            chosen["tables"] = tables
    outputs, defs = app.run(defs=chosen)
    result: dict[str, Any] = {"defs": sorted(defs), "callouts": [t for t in map(callout, outputs) if t]}
    if "tables" in defs:
        result["tables"] = [[row["schema"], row["name"]] for row in defs["tables"].to_dicts()]
    if "checks" in defs:
        result["checks"] = {check["check"]: [check["status"], check["finding"]] for check in defs["checks"]}
    if "result" in defs:
        result["rows"] = defs["result"].height
    if "con" in defs:
        result["writes"] = writes(defs["con"])
        if job.get("charts") and "source" in defs:
            result["charts"] = charts(defs)
        if "con" not in chosen:
            defs["con"].close()
    return result


def main() -> None:
    app = load(sys.argv[1])
    rows: dict[str, Any] = {}
    results = []
    for job in json.load(sys.stdin):
        try:
            results.append(run(app, job, rows))
        except BaseException:
            results.append({"error": traceback.format_exc()})
    with open(sys.argv[2], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
