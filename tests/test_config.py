"""Settings: the defaults of the contract, precedence, and a message for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from altlas_core.config import Settings, all_keys, from_dict, load_config, to_dict, with_overrides
from altlas_core.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]

# The keys of the original with its defaults, and those added.
CONTRACT = {
    "seed": 42,
    "gpu.backend": "auto",
    "gpu.devices": [],
    "gpu.memory_limit_bytes": None,
    "gpu.detection.enabled": True,
    "gpu.detection.min_compute_capability": 7.0,
    "gpu.detection.memory_threshold": 0.9,
    "gpu.detection.utilization_threshold": 0.95,
    "gpu.detection.max_temperature": 85,
    "gpu.detection.health_check_interval": 60,
    "gpu.selection.default_strategy": "single_gpu",
    "gpu.selection.strategies": ["single_gpu", "round_robin", "least_loaded", "memory_optimized", "random"],
    "gpu.workload.queue_processing_interval": 0.1,
    "gpu.workload.max_concurrent_tasks_per_gpu": 4,
    "gpu.workload.batch_size": 8,
    "gpu.workload.timeout": 300,
    "gpu.workload.retry_count": 3,
    "gpu.workload.max_queue": 0,
    "gpu.workload.priority_aging": 60,
    "gpu.workload.kill_grace": 2,
    "gpu.workload.spare_workers": 1,
    "gpu.workload.heartbeat_timeout": 10,
    "telemetry.interval": 1,
    "run.pace": 0,
    "run.time_scale": 1,
    "run.workload": None,
    "run.repeat": 1,
    "run.export": [],
    "run.deadline": 0,
    "run.notebook_deadline": 0,
    "predict.model": None,
    "predict.max_batch_delay": 0.005,
    "predict.max_length": 512,
    "predict.max_text_chars": 8192,
    "predict.max_texts": 1000,
    "api.journal": None,
    "api.full_sync": True,
    "api.retention_age": 604_800,
    "api.retention_count": 1_000_000,
    "api.shutdown_grace": 10,
    "api.max_body_bytes": 1_048_576,
    "api.allowed_hosts": [],
    "api.key_file": None,
    "test.detection.enabled": True,
    "test.basic_functionality.enabled": True,
    "test.basic_functionality.input_size": 1024,
    "test.basic_functionality.output_size": 1024,
    "test.basic_functionality.duration": 5,
    "test.concurrent_processing.enabled": True,
    "test.concurrent_processing.concurrent_tasks": 4,
    "test.concurrent_processing.task_count": 20,
    "test.concurrent_processing.input_size": 1024,
    "test.concurrent_processing.output_size": 1024,
    "test.concurrent_processing.duration": 2,
    "test.performance.enabled": True,
    "test.performance.scenarios": [
        {"name": "small_model", "input_size": 1024, "output_size": 1024, "duration": 5},
        {"name": "medium_model", "input_size": 4096, "output_size": 4096, "duration": 5},
        {"name": "large_model", "input_size": 8192, "output_size": 8192, "duration": 5},
    ],
    "test.error_handling.enabled": True,
    "test.error_handling.scenarios": [
        {"name": "gpu_overload", "concurrent_tasks": 10, "input_size": 16384, "output_size": 16384, "duration": 10},
        {"name": "task_timeout", "concurrent_tasks": 1, "input_size": 8192, "output_size": 8192, "duration": 310},
    ],
    "test.own_workload.enabled": True,
    "test.strategy_comparison.enabled": True,
}


def at(tree: object, key: str) -> object:
    for part in key.split("."):
        assert isinstance(tree, dict)
        tree = tree[part]
    return tree


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load_text(tmp_path: Path, text: str | bytes) -> Settings:
    return load_config(written(tmp_path, text), environ={})


# Defaults


@pytest.mark.parametrize("key", CONTRACT)
def test_default_is_that_of_the_contract(key: str) -> None:
    assert at(to_dict(load_config(environ={})), key) == CONTRACT[key]


def test_there_are_no_other_keys() -> None:
    assert sorted(all_keys()) == sorted(CONTRACT)


def test_the_file_in_the_repository_states_every_key_with_its_default() -> None:
    path = REPOSITORY / "config.yaml"
    assert load_config(path, environ={}) == load_config(environ={})
    tree = yaml.safe_load(path.read_text())
    for key in CONTRACT:
        at(tree, key)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "gpu:\n", "gpu:\n  workload:\ntest: {}\n"])
def test_an_empty_file_or_section_means_all_defaults(tmp_path: Path, text: str) -> None:
    assert load_text(tmp_path, text) == load_config(environ={})


def test_no_file_is_read_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(environ={}).seed == 42


# Precedence


def test_override_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, "gpu: {workload: {timeout: 1, batch_size: 1, retry_count: 1}}")
    environ = {"ALTLAS_GPU__WORKLOAD__TIMEOUT": "2", "ALTLAS_GPU__WORKLOAD__BATCH_SIZE": "2"}
    got = load_config(path, {"gpu.workload.timeout": "3"}, environ).gpu.workload
    assert (got.timeout, got.batch_size, got.retry_count, got.kill_grace) == (3.0, 2, 1, 2.0)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("gpu.detection.enabled", "false", False),
        ("gpu.detection.enabled", "no", False),
        ("gpu.workload.timeout", "1e3", 1000.0),
        ("gpu.workload.timeout", "2.5E-1", 0.25),
        ("gpu.workload.batch_size", "8.0", 8),
        ("gpu.backend", "cpu", "cpu"),
        ("gpu.devices", "8x A100-SXM4-80GB", ["8x A100-SXM4-80GB"]),
        ("gpu.devices", "[cpu:2, 'cuda:0']", ["cpu:2", "cuda:0"]),
        ("gpu.memory_limit_bytes", "null", None),
        ("gpu.memory_limit_bytes", "1000000000", 10**9),
        ("gpu.workload", "{batch_size: 3}", CONTRACT),
    ],
)
def test_text_of_flag_and_environment_is_read_as_yaml(key: str, text: str, value: object) -> None:
    by_flag = load_config(None, {key: text}, {})
    by_environment = load_config(None, None, {"ALTLAS_" + key.upper().replace(".", "__"): text})
    assert by_flag == by_environment
    if key == "gpu.workload":
        assert by_flag.gpu.workload.batch_size == 3
        assert by_flag.gpu.workload.timeout == 300
    else:
        assert at(to_dict(by_flag), key) == value


def test_an_override_may_be_typed_already() -> None:
    got = load_config(None, {"gpu.devices": ("cpu:2",), "seed": 7, "gpu": {"backend": "cpu"}}, {})
    assert (got.gpu.devices, got.seed, got.gpu.backend) == (("cpu:2",), 7, "cpu")


def test_variables_that_are_not_ours_or_empty_do_not_matter() -> None:
    environ = {"ALTLAS_API_KEY": "[", "ALTLAS": "x", "GPU__BACKEND": "x", "ALTLAS_GPU__BACKEND": "", "ALTLAS_SEED": "7"}
    got = load_config(None, None, environ)
    assert got == with_overrides(load_config(environ={}), {"seed": 7})


@pytest.mark.parametrize("name", ["ALTLAS_GPU_BACKEND", "ALTLAS_BOGUS"])
def test_a_variable_that_is_almost_a_setting_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {name}: is no setting"):
        load_config(None, None, {name: "cpu"})


def test_one_underscore_too_few_is_recognised() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ALTLAS_GPU__BACKEND'"):
        load_config(None, None, {"ALTLAS_GPU_BACKEND": "cpu"})


def test_devices_may_be_one_text_with_commas() -> None:
    got = load_config(None, None, {"ALTLAS_GPU__DEVICES": "4x T4, L4"})
    assert got.gpu.devices == ("4x T4", "L4")


@pytest.mark.parametrize(("spec", "told"), [("0x T4", "allowed"), ("4x A10O", "Did you mean 'A10'"), ("x", "allowed")])
def test_a_bad_device_spec_is_found_where_it_is_written(tmp_path: Path, spec: str, told: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"gpu: {{devices: ['{spec}']}}\n")
    with pytest.raises(ConfigError, match=f"c.yaml.*gpu.devices.*{told}"):
        load_config(path, None, {})


# Round trip


def test_to_dict_and_from_dict_are_inverse_also_through_json() -> None:
    settings = load_config(None, {"gpu.devices": ["T4", "cpu:2"], "gpu.memory_limit_bytes": 5, "run.pace": 0.1}, {})
    assert from_dict(json.loads(json.dumps(to_dict(settings)))) == settings


def test_with_overrides_changes_that_key_only_and_leaves_the_original() -> None:
    settings = load_config(environ={})
    changed = with_overrides(settings, {"gpu.workload.timeout": 5})
    assert changed.gpu.workload.timeout == 5.0
    assert settings.gpu.workload.timeout == 300.0
    assert with_overrides(changed, {"gpu.workload.timeout": 300}) == settings


def test_a_registered_strategy_is_allowed_listed_or_as_default() -> None:
    overrides = {"gpu.selection.strategies": ["mine", "random"], "gpu.selection.default_strategy": "mine"}
    settings = load_config(None, overrides, {}, extra_strategies=iter(["mine"]))
    assert with_overrides(settings, {"seed": 1}).gpu.selection == settings.gpu.selection
    unlisted = load_config(None, {"gpu.selection.default_strategy": "mine"}, {}, extra_strategies=["mine"])
    assert unlisted.gpu.selection.default_strategy == "mine"


def test_with_overrides_does_not_allow_a_default_that_is_no_longer_listed() -> None:
    with pytest.raises(ConfigError, match=r"single_gpu.*is not among gpu\.selection\.strategies"):
        with_overrides(load_config(environ={}), {"gpu.selection.strategies": ["random"]})


# Impossible values: (key, value as YAML, how the message shows it, a part of what is allowed)

HUGE = "1" + "0" * 400
NUMBERS = {
    "gpu.detection.min_compute_capability": ["-1", "100"],
    "gpu.detection.memory_threshold": ["0", "1.01", "-0.5", "90"],
    "gpu.detection.utilization_threshold": ["0", "2"],
    "gpu.detection.max_temperature": ["0", "-5", "1000"],
    "gpu.detection.health_check_interval": ["0", "-60", "1e10"],
    "gpu.workload.queue_processing_interval": ["0", "-0.1", "1e10"],
    "gpu.workload.max_concurrent_tasks_per_gpu": ["0", "-4", "1025", "2.5"],
    "gpu.workload.batch_size": ["0", "-8", "1048577", "1.5"],
    "gpu.workload.timeout": ["0", "-1", "1000000001"],
    "gpu.workload.retry_count": ["-1", "1.5", "100000"],
    "gpu.workload.max_queue": ["-1", "0.5"],
    "gpu.workload.priority_aging": ["0", "-60"],
    "gpu.workload.kill_grace": ["-2"],
    "gpu.workload.spare_workers": ["-1", "65", "0.5"],
    "gpu.workload.heartbeat_timeout": ["0", "-10", "0.01"],
    "gpu.memory_limit_bytes": ["0", "-1", "1.5"],
    "telemetry.interval": ["0", "-1", "0.0001"],
    "run.pace": ["-1"],
    "run.time_scale": ["0", "-1", "101"],
    "run.repeat": ["0", "-1", "1001", "1.5"],
    "run.deadline": ["-1"],
    "run.notebook_deadline": ["-1"],
    "predict.max_batch_delay": ["-1", "11"],
    "predict.max_length": ["0", "1025", "1.5"],
    "predict.max_text_chars": ["0", "1000001"],
    "predict.max_texts": ["0", "100001"],
    "api.retention_age": ["0", "-1"],
    "api.retention_count": ["0", "1.5"],
    "api.shutdown_grace": ["-1", "86401"],
    "api.max_body_bytes": ["1023", "1073741825"],
    "seed": ["-1", "1.5"],
    "test.basic_functionality.input_size": ["0", "-1", "1048577"],
    "test.basic_functionality.output_size": ["0", "1.5"],
    "test.basic_functionality.duration": ["0", "-5"],
    "test.concurrent_processing.concurrent_tasks": ["0", "-4"],
    "test.concurrent_processing.task_count": ["0", "-20"],
    "test.concurrent_processing.input_size": ["0"],
    "test.concurrent_processing.output_size": ["0"],
    "test.concurrent_processing.duration": ["0"],
}


def test_every_numeric_key_has_its_bad_values_here() -> None:
    numeric = {
        key for key, value in CONTRACT.items() if type(value) in (int, float) or key in ("gpu.memory_limit_bytes",)
    }
    assert numeric == set(NUMBERS)


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in NUMBERS.items() for text in texts])
def test_a_number_out_of_range_is_refused_with_file_key_value_and_range(tmp_path: Path, key: str, text: str) -> None:
    *sections, name = key.split(".")
    tree = "".join("  " * depth + f"{part}:\n" for depth, part in enumerate(sections))
    path = written(tmp_path, f"{tree}{'  ' * len(sections)}{name}: {text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}: ")
    assert f"{yaml.safe_load(text) if 'e' not in text else '10000000000'} is" in message
    assert "; allowed: a" in message
    assert " to " in message


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "true", "'8'", "eight", "[1]", "{a: 1}", "2001-01-01", HUGE])
def test_what_is_no_usable_number_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^override {key}: .*; allowed: a (whole )?number"):
        load_config(None, {key: text}, {})


@pytest.mark.parametrize("key", [key for key, value in CONTRACT.items() if value is not None])
def test_null_is_no_value(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^override {key}: null .*allowed: "):
        load_config(None, {key: None}, {})


@pytest.mark.parametrize("key", ["predict.model", "api.journal", "api.key_file"])
def test_a_path_is_text_or_nothing(key: str) -> None:
    load_config(None, {key: None}, {})
    load_config(None, {key: "here/it.is"}, {})
    for wrong in (3, "' '", ["a"]):
        with pytest.raises(ConfigError, match=rf"^override {key}: .*allowed: "):
            load_config(None, {key: wrong}, {})


@pytest.mark.parametrize(
    ("key", "text", "parts"),
    [
        ("gpu.detection.enabled", "1", ("1", "true, false")),
        ("test.detection.enabled", "'yes'", ("'yes'", "true, false")),
        ("gpu.backend", "gpuu", ("'gpuu'", "auto, cuda, cpu, simulated")),
        ("gpu.backend", "simulate", ("'simulate'", "Did you mean 'simulated'?")),
        ("gpu.backend", "1", ("1 is not known", "auto, cuda")),
        ("gpu.devices", "3", ("3", "8x A100-SXM4-80GB")),
        ("gpu.devices", "[1]", ("[1]", "cpu:2")),
        ("gpu.devices", "['']", ("['']", "cpu:2")),
        ("gpu.devices", "{a: b}", ("{'a': 'b'}", "cpu:2")),
        ("gpu.selection.strategies", "[]", ("[]", "at least one strategy")),
        ("gpu.selection.strategies", "random", ("'random'", "a list")),
        ("gpu.selection.strategies", "[random, random]", ("'random'", "each strategy once")),
        ("gpu.selection.strategies", "[single_gpu, randm]", ("'randm'", "Did you mean 'random'?")),
        ("gpu.selection.default_strategy", "least_load", ("'least_load'", "Did you mean 'least_loaded'?")),
        ("gpu.selection.default_strategy", "3", ("3 is not text",)),
        ("gpu.workload", "3", ("3 is not a mapping", "batch_size")),
        ("test", "[]", ("[] is not a mapping", "performance")),
        ("test.performance.scenarios", "[]", ("[]", "at least one record")),
        ("test.performance.scenarios", "small", ("'small'", "a list")),
        ("gpu.workload.timeout", "[1", ("'[1'", "not usable YAML")),
        ("gpu.workload.timeout", "{a: 1, a: 2}", ("twice",)),
    ],
)
def test_a_wrong_value_is_refused_with_flag_key_value_and_what_is_allowed(
    key: str, text: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {key: text}, {})
    assert str(caught.value).startswith(f"override {key}: ")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "records", "where", "part"),
    [
        ("performance", "[{name: a, durration: 1}]", "[0].durration", "Did you mean 'duration'?"),
        ("performance", "[{name: a, concurrent_tasks: 1}]", "[0].concurrent_tasks", "allowed: name, input_size"),
        ("performance", "[{name: a}, {name: b, duration: 0}]", "[1].duration", "0 is out of range"),
        ("performance", "[{name: a}, {name: a}]", "[1].name", "'a' stands there twice"),
        ("performance", "[{input_size: 8}]", "[0].name", "is missing"),
        ("performance", "[{name: 3}]", "[0].name", "3 is not text"),
        ("performance", "[3]", "[0]", "3 is not a record"),
        ("error_handling", "[{name: gpu_overlord}]", "[0].name", "Did you mean 'gpu_overload'?"),
        ("error_handling", "[{name: gpu_overload, input_size: 1e9}]", "[0].input_size", "1000000000 is out of range"),
    ],
)
def test_a_wrong_scenario_record_is_named_with_its_place(key: str, records: str, where: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {f"test.{key}.scenarios": records}, {})
    assert str(caught.value).startswith(f"override test.{key}.scenarios{where}: ")
    assert part in str(caught.value)


# Unknown keys


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("gpu.workload.timout", "gpu.workload.timeout"),
        ("gpu.workload.Timeout", "gpu.workload.timeout"),
        ("timeout", "gpu.workload.timeout"),
        ("gpu.timeout", "gpu.workload.timeout"),
        ("gpus.backend", "gpu"),
        ("gpu.worklod.timeout", "gpu.workload"),
        ("backend", "gpu.backend"),
        ("test.performence.enabled", "test.performance"),
        ("sede", "seed"),
        ("qqqqqq", None),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest(tmp_path: Path, key: str, nearest: str | None) -> None:
    *sections, name = key.split(".")
    text = "".join(f"{{{part}: " for part in sections) + f"{{{name}: 1}}" + "}" * len(sections)
    path = written(tmp_path, text)
    variable = "ALTLAS_" + key.upper().replace(".", "__")
    by_source: dict[str, tuple[Path | None, dict[str, str], dict[str, str]]] = {
        f"{path}: ": (path, {}, {}),
        "override ": (None, {key: "1"}, {}),
    }
    if sections and key.islower():
        by_source[f"environment variable {variable}: "] = (None, {}, {variable: "1"})
    for source, (file, overrides, environ) in by_source.items():
        with pytest.raises(ConfigError) as caught:
            load_config(file, overrides, environ)
        message = str(caught.value)
        assert message.startswith(f"{source}unknown key '")
        assert key.casefold().startswith(message.split("'")[1].casefold())
        assert "; allowed " in message
        # A file is read section by section: there the hint is at the section, from a flag at the whole key.
        assert ("Did you mean" not in message) if nearest is None else f" Did you mean '{nearest}" in message


def test_a_key_inside_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^override seed\.x: seed has no keys inside"):
        load_config(None, {"seed.x": "1"}, {})


@pytest.mark.parametrize("name", ["", ".", "gpu.", ".gpu", "gpu..backend"])
def test_a_malformed_key_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(None, {name: "1"}, {})


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "sede: 1\ngpu: {backend: x, workload: {timeout: -1}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"run.pace": "-1"}, {"ALTLAS_GPU__DEVICES": "3"})
    assert len(str(caught.value).splitlines()) == 5


# Files


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("gpu:\n  devices: [a, b\n", 3, ""),
        ("seed: 1\n\tgpu: 2\n", 2, ""),
        ("seed: 1\nseed: 2\n", 2, "'seed' stands here twice (first on line 1)"),
        ("gpu:\n  workload: {timeout: 1}\n  backend: cpu\n  workload: {}\n", 4, "'workload'"),
        ("seed: 1\nrun: \x01\n", 2, "character"),
        ("seed: 1\n---\nseed: 2\n", 2, ""),
        ("seed: !!python/object:os.system 1\n", 1, "python/object"),
        ("? [a]\n: 1\n", 1, "unhashable"),
        ("seed: *x\n", 1, "alias"),
    ],
)
def test_yaml_that_does_not_parse_is_named_with_file_and_line(tmp_path: Path, text: str, line: int, part: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    assert str(caught.value).startswith(f"{path}, line {line}: not usable YAML: ")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"\xff\xfes\x00", "is not UTF-8 text"),
        (b"- 1\n- 2\n", "[1, 2]; allowed: a mapping with seed, gpu"),
        (b"just text\n", "'just text'; allowed: a mapping"),
        (b"3\n", "holds 3; allowed: a mapping"),
        (b"seed: 2001-99-99\n", "a value cannot be read"),
        (b"[" * 100_000, "YAML"),
        (b"1: 2\n", "unknown key '1'"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b,*b]\nseed: [*c,*c,*c]\n", "seed: ["),
        (b"#" + b"x" * 2**20, "larger than"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, text: bytes, part: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    assert load_text(tmp_path, b"\xef\xbb\xbfseed: 7\n").seed == 7


@pytest.mark.parametrize(("path", "part"), [("absent.yaml", "no such file"), (".", "is a directory"), ("a\0b", "a\0b")])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, path: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config(tmp_path / path, environ={})
