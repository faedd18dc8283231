"""The command `altlas`: what can be typed, and how errors and exit statuses come out of it.

Exit status: 0 all checks passed, 1 a check failed, 2 bad input, 3 the run itself broke. A mistake of the user's never
shows a traceback. What the commands do is in run_command.py and commands.py, loaded when one is called.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

from altlas_core.errors import AltlasError

BROKE: Final = 3
_DEVICE_HELP: Final = "'8x A100-SXM4-80GB', cpu:2, cuda, cuda:0, cuda:0/4; may be given again"


def entry() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status. Only argparse's own endings (--help, 2) raise SystemExit."""
    arguments = _parser().parse_args(argv)
    try:
        status = _call(arguments)
        sys.stdout.flush()
        return status
    except AltlasError as error:
        print(f"altlas: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("altlas: interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells say it
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKE
    except Exception:
        traceback.print_exc()
        print("altlas: this is a fault of the program, not of your input; the lines above say where.", file=sys.stderr)
        return BROKE


def _call(arguments: argparse.Namespace) -> int:
    from altlas_core import commands, run_command

    names = {
        "run": run_command.run,
        "compare": commands.compare,
        "gpus": commands.gpus,
        "serve": commands.serve,
        "config": commands.config_check,
    }
    return names[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="altlas",
        description="Schedule work on GPUs, simulated or real, and report what was shown.",
        epilog="Exit status: 0 all checks passed, 1 a check failed, 2 bad input, 3 the run itself broke.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run scenarios and write reports/<run>/index.html"))
    _add_compare(
        commands.add_parser(
            "compare",
            help="two runs side by side, as a page",
            epilog="Exit status: 0, 1 a check that held in the first run fails in the second, 2 bad input.",
        )
    )
    _add_gpus(commands.add_parser("gpus", help="what is there, or what would be simulated"))
    _add_serve(commands.add_parser("serve", help="the HTTP API"))
    config = commands.add_parser("config", help="look at settings").add_subparsers(
        dest="config_command", required=True, metavar="COMMAND"
    )
    check = config.add_parser("check", help="say whether a settings file can be used")
    check.add_argument("file", nargs="?", metavar="FILE", help="default: ./config.yaml where there is one")
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all that are enabled")
    _add_machine(parser)
    parser.add_argument("--seed", metavar="N", help="default 42")
    parser.add_argument("--reports-dir", default="reports", metavar="DIR", help="default: reports")
    parser.add_argument("--time-scale", metavar="X", help="real devices: every duration and timeout times X")
    parser.add_argument(
        "--pace", metavar="X", help="simulated devices: 0 = virtual time (default), 1 = real time, 10 = ten times that"
    )
    parser.add_argument("--workload", metavar="FILE", help="CSV, Parquet or JSON lines: what own_workload runs")
    parser.add_argument("--strategy", metavar="S", help="which GPU gets a task: a name, or yours as my.py:choose")
    parser.add_argument("--repeat", metavar="N", help="runs of each scenario, for spread and confidence intervals")
    parser.add_argument("--export", action="append", metavar="FORMAT", help="csv, parquet or trace; may be given again")
    parser.add_argument(
        "--fail-if", action="append", default=[], metavar="RULE", help="such as 'p99_s > 2'; may be given again"
    )
    parser.add_argument("--deadline", metavar="S", help="real seconds that the whole run may take")
    parser.add_argument("--notebook-deadline", metavar="S", help="real seconds that one notebook may take")
    parser.add_argument("--resume", metavar="RUN", help="run what an earlier run left: its folder or its id")
    parser.add_argument("--watch", action="store_true", help="show a live page of the running suite")
    parser.add_argument("--pdf", action="store_true", help="pages as PDF too, where Chromium is installed")
    parser.add_argument("--json", action="store_true", help="print the content of results.json")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="RUN", help="a run's folder, its id, or latest")
    parser.add_argument("after", metavar="RUN", help="the run to compare with it")
    parser.add_argument("--reports-dir", default="reports", metavar="DIR", help="where ids are looked for")
    parser.add_argument("--out", metavar="DIR", help="where the page goes; default: comparisons/<RUN>--<RUN>")
    parser.add_argument("--json", action="store_true", help="print the comparison for programs")


def _add_gpus(parser: argparse.ArgumentParser) -> None:
    _add_machine(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1; any other needs an API key")
    parser.add_argument("--port", default="8000", help="default 8000; 0: any free one")
    _add_machine(parser)
    parser.add_argument("--pace", metavar="X", help="simulated devices: 1 = real time (default), 10 = ten times that")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="B", help="auto, cuda, cpu or simulated")
    parser.add_argument("--devices", action="append", metavar="SPEC", help=_DEVICE_HELP)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of config.yaml")
    parser.add_argument("--config", metavar="FILE", help="default: ./config.yaml where there is one")


if __name__ == "__main__":
    entry()
