"""The results of the benchmarks of the API as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.layout import Found, between, table


def journal(found: Found) -> str:
    named = {f"empty, synchronous={name}": case for name, case in found["writes"].items()}
    large = found["reads"]
    named[f"of {large['tasks']:,} tasks, synchronous=FULL"] = {**large["flood"], **large, "idle_commit_ms": None}
    rows = [
        (
            name,
            f"{case['tasks_per_s']:,.0f}",
            *(_percentiles(case[key]) for key in ("commit_ms", "busy_commit_ms", "idle_commit_ms")),
        )
        for name, case in named.items()
    ]
    head = (
        "ms from write to done: p50 / p99 / max",
        "flood: tasks/s",
        "flood",
        "200/s, thread busy",
        "200/s, thread idle",
    )
    lists = [(f"list of 100: {name}", f"{seconds * 1e3:,.2f}") for name, seconds in large["list_s"].items()]
    lists.append(("list of 100 batches of 100", f"{large['batches_s'] * 1e3:,.2f}"))
    lists.append(("one task by id", f"{large['task_s'] * 1e3:,.3f}"))
    lists.append(("open", f"{large['open_s'] * 1e3:,.0f}"))
    about = f"{large['tasks']:,} tasks, {large['bytes_per_task']:,.0f} bytes each"
    return table(head, rows) + "\n\n" + table((about, "ms (median)"), lists)


def _percentiles(found: dict[str, float] | None) -> str:
    return "" if found is None else " / ".join(f"{found[key]:.1f}" for key in ("p50", "p99", "max"))


def http_api(found: Found) -> str:
    per_s = found["per_s"]
    rows = [
        ("bare FastAPI, POST", between(per_s["bare_post"]), ""),
        ("POST /predict, accepted and journalled", between(per_s["post"]), _percent(found["post_ratio"])),
        ("bare FastAPI, GET", between(per_s["bare_get"]), ""),
        ("GET /tasks/{id}", between(per_s["get"]), _percent(found["get_ratio"])),
    ]
    load = table(
        (f"{found['connections']} connections, {found['rounds']} rounds", "requests/s", "of bare FastAPI"), rows
    )
    half = [
        ("POST /predict, requests/s", between(found["half_load_per_s"])),
        ("p50, ms", between(found["half_load_p50_ms"], digits=1)),
        ("p99, ms", between(found["half_load_p99_ms"], digits=1)),
        ("answers that were no 200, in all", f"{found['errors']:,.0f}"),
        ("tasks that completed, in all", f"{found['completed']:,}"),
    ]
    stored = found["stored"]
    lists = [
        (name.replace("_", " "), f"{case['p50_ms']:.2f}", f"{case['p99_ms']:.2f}", f"{case['per_s']:,.0f}")
        for name, case in stored.items()
        if name != "tasks"
    ]
    head = (f"{stored['tasks']:,} tasks in the journal, one connection", "p50, ms", "p99, ms", "requests/s")
    return "\n\n".join([load, table(("at half that load", ""), half), table(head, lists)])


def _percent(found: dict[str, Any]) -> str:
    return between(found, 100.0) + " %"


def generation(found: Found) -> str:
    rows = [
        ("bare loop, tokens/s", between(found["bare_tokens_per_s"])),
        ("the worker's path, tokens/s", between(found["tokens_per_s"])),
        ("of the bare loop", _percent(found["ratio"])),
    ]
    return table(
        (f"{found['rows']} prompts, {found['new_tokens']} new tokens each, {found['rounds']} rounds", ""), rows
    )


def generation_api(found: Found) -> str:
    rows = [
        ("bare loop, tokens/s", between(found["bare_tokens_per_s"])),
        ("through the API, tokens/s", between(found["tokens_per_s"])),
        ("of the bare loop", _percent(found["ratio"])),
    ]
    each = f"{found['batches']} batches of {found['rows']} prompts, {found['new_tokens']} new tokens each"
    return table((f"{each}, {found['rounds']} rounds", ""), rows)


def api_memory(found: Found) -> str:
    rows = [(f"{row['tasks']:,}", f"{row['resident_mib']:,.0f}") for row in found["resident"]]
    about = f"finished tasks ({found['tasks_per_s']:,} a second; journal {found['journal_mib']:,.0f} MiB)"
    return table((about, "resident MiB"), rows)
