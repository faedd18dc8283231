"""The results of a benchmark as a Markdown table: one function each, by name in TABLES."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import api_tables
from benchmarks.layout import Found, between, table

MIB = 1024**2


def scheduler(found: Found) -> str:
    parts = []
    for machine in found["machines"]:
        rows = [
            (name, between(c["per_s"]), f"{c['per_cpu_s']['median']:,.0f}", f"{c['virtual_s']:,.1f}")
            for name, c in machine["contestants"].items()
        ]
        title = (
            f"{machine['gpus']:,} GPUs x {machine['slots']} slots, {machine['tasks']:,} tasks, "
            f"{machine['rounds']} rounds"
        )
        head = (title, "tasks/s: median (range)", "tasks per CPU s", "virtual s")
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def memory(found: Found) -> str:
    rows = [
        (f"`{name}`", f"{step['wall_s']:.1f}", f"{step['peak_bytes'] / MIB:,.0f}")
        for name, step in found["steps"].items()
    ]
    return table((f"{found['tasks']:,} tasks, {found['gpus']} GPUs, after", "seconds", "peak MiB so far"), rows)


def import_time(found: Found) -> str:
    heavy = ", ".join(found["heavy_loaded"]) or "none"
    rows = [
        (f"`import altlas_core`, ms, {found['rounds']} fresh interpreters", between(found["seconds"], 1e3)),
        (f"loaded of {', '.join(found['heavy_looked_for'])}", heavy),
    ]
    return table(("", "median (range)"), rows)


def decision_cost(found: Found) -> str:
    rows = []
    for row in found["rows"]:
        few, many = row["seconds_per_decision"]["8"], row["seconds_per_decision"]["1024"]
        name = f"{row['strategy']}, {'all' if row['slots_taken'] == 1.0 else 'half'} of the slots taken"
        rows.append((name, between(few, 1e6, 2), between(many, 1e6, 2), f"{many['median'] / few['median']:.2f}"))
    return table(("microseconds per decision", "8 GPUs", "1,024 GPUs", "ratio"), rows)


def suite(found: Found) -> str:
    rows = [(f"whole suite, rounds: {found['rounds']}", between(found["wall_s"], 1.0, 1))]
    rows += [(f"of it {name}", between(values, 1.0, 1)) for name, values in found["scenario_wall_s"].items()]
    rows.append(("passed", "yes" if found["passed"] else "NO"))
    rows.append(("folder, MiB", f"{found['folder_bytes'] / MIB:.2f}"))
    return table(("", "seconds: median (range)"), rows)


def report_page(found: Found) -> str:
    rows = [
        (f"seconds until all {found['figures']} figures are drawn", between(found["drawn_s"], 1.0, 2)),
        ("the page, KB", f"{found['page_bytes'] / 1e3:,.0f}"),
        ("assets that all pages share, KB", f"{found['assets_bytes'] / 1e3:,.0f}"),
    ]
    head = f"{found['tasks']:,} tasks on {found['gpus']:,} GPUs, opened {found['rounds']} times"
    return table((head, "median (range)"), rows)


def live_dashboard(found: Found) -> str:
    rows = [
        ("its clock, counters and GPUs", between(found["clock_per_s"], 1.0, 1)),
        ("its figure", between(found["figure_per_s"], 1.0, 1)),
    ]
    return table((f"{found['gpus']} GPUs, {found['rounds']} rounds", "drawn a second: median (range)"), rows)


def dispatch(found: Found) -> str:
    rays = found.get("ray_tasks_per_s")
    rows = [
        ("no-op tasks/s", f"{found['tasks_per_s']:,.0f}", f"{found['peer_tasks_per_s']:,.0f}"),
        (
            "one at a time, p50, microseconds",
            f"{found['latency_p50_s'] * 1e6:,.0f}",
            f"{found['peer_latency_p50_s'] * 1e6:,.0f}",
        ),
        ("no-op tasks/s, Ray actors", "", "not installed" if rays is None else f"{rays:,.0f}"),
        ("tasks/s, ratio: median (lowest)", f"{found['ratio']:.2f} ({found['ratio_min']:.2f})", "1"),
    ]
    head = (f"{found['tasks']:,} no-op tasks, {found['rounds']} rounds", "altlas", "ProcessPoolExecutor")
    return table(head, rows)


def real_work(found: Found) -> str:
    rows = [
        (
            f"{name}, {model['batch']} x {model['size']} by {model['size']} x {model['size']}",
            between(model["iterations_per_s"], 1.0, 2),
            between(model["bare_iterations_per_s"], 1.0, 2),
            between(model["ratio"], 1.0, 3),
        )
        for name, model in found["models"].items()
    ]
    title = f"products/s on one CPU core, {found['rounds']} rounds of {found['seconds']:g} s"
    return table((title, "through altlas", "bare torch loop", "ratio: median (range)"), rows)


def sampler(found: Found) -> str:
    rows = [
        (name, f"{100 * case['cpu_share']:.2f}", f"{case['rounds_per_s']:.1f}") for name, case in found["cases"].items()
    ]
    title = f"readings of all devices, {found['seconds']:g} s"
    most = f"rounds/s (at most {found['most_rounds_per_s']:g})"
    return table((title, "% of one core", most), rows)


def kills(found: Found) -> str:
    rows = [(f"tasks {state}", f"{count:,}") for state, count in sorted(found["states"].items())]
    rows += [(f"attempts that ended as {name}", f"{count:,}") for name, count in sorted(found["outcomes"].items())]
    rows += [("attempts started", f"{found['attempts']:,}"), ("seconds", f"{found['wall_s']:.0f}")]
    return table((f"{found['tasks']:,} tasks, {found['kills']} workers killed", "count"), rows)


def stop_cost(found: Found) -> str:
    rows = [(name, between(seconds, 1.0, 2)) for name, seconds in found["seconds"].items()]
    head = f"from deadline + kill_grace to the end of the next task, {found['rounds']} rounds"
    return table((head, "seconds: median (range)"), rows)


TABLES: dict[str, Callable[[Found], str]] = {
    "scheduler": scheduler,
    "decision_cost": decision_cost,
    "memory": memory,
    "dispatch": dispatch,
    "real_work": real_work,
    "sampler": sampler,
    "stop_cost": stop_cost,
    "kills": kills,
    "suite": suite,
    "report_page": report_page,
    "live_dashboard": live_dashboard,
    "import_time": import_time,
    "http_api": api_tables.http_api,
    "journal": api_tables.journal,
    "generation": api_tables.generation,
    "generation_api": api_tables.generation_api,
    "api_memory": api_tables.api_memory,
}
