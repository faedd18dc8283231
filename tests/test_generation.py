"""Text generation as the scheduler and the simulated GPUs know it: prompts, memory, costs, what an attempt tells."""

from __future__ import annotations

import marshal
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core.backends.worker.order import Order, pack
from altlas_core.errors import WorkloadError
from altlas_core.generation import Generation, Prompt, TextModel, fit, reserved_bytes
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.gpu_model.generation import KERNELS_PER_LAYER, LAUNCH_S, generation_cost
from altlas_core.intake import make_tasks
from altlas_core.kinds import KINDS
from altlas_core.model import Attempt, TaskSpec
from altlas_core.replay import replay

A100 = CATALOG["A100-SXM4-80GB"]
SMALL = TextModel("small", None, 4, 128, 128, 257, 1024, 800_000, 8)
LARGE = TextModel("large", "/models/large", 32, 4096, 1024, 32_000, 8192, 8_000_000_000, 2)


def prompt(tokens: int = 10, new: int = 20, text: str = "abc") -> Prompt:
    return Prompt(text, new, 0.0, 1, tokens)


def spec(*prompts: Prompt, model: TextModel = SMALL, **more: Any) -> TaskSpec:
    fields = {"memory_bytes": 1 << 20, **more}
    return TaskSpec(kind="text_generation", generation=Generation(model, list(prompts)), **fields)


def simulate(*specs: TaskSpec, **settings: Any) -> altlas.Result:
    keys = {"gpu.backend": "simulated", "gpu.devices": ["1x A100"], **settings}
    return altlas.run(altlas.load_config(None, keys, environ={}), altlas.Workload(specs))


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_a_token_in_the_cache_takes_a_key_and_a_value_in_each_layer() -> None:
    assert SMALL.kv_bytes_per_token == 2 * 4 * 128 * 8
    assert LARGE.kv_bytes_per_token == 2 * 32 * 1024 * 2
    assert LARGE.weights_bytes == 16_000_000_000


def test_reserved_memory_holds_weights_and_cache_and_grows_with_rows_and_tokens_up_to_the_context() -> None:
    for model in (SMALL, LARGE):
        least = model.weights_bytes + 8 * 100 * model.kv_bytes_per_token
        assert least < reserved_bytes(model, 8, 100) < reserved_bytes(model, 9, 100) < reserved_bytes(model, 9, 101)
        assert reserved_bytes(model, 8, model.context) == reserved_bytes(model, 8, 10 * model.context)


@pytest.mark.parametrize(
    ("prompt_tokens", "new", "kept"),
    [(10, 20, (10, 20)), (100, 20, (80, 20)), (80, 20, (80, 20)), (0, 20, (0, 20)), (50, 500, (1, 99)), (5, 0, (5, 1))],
)
def test_prompt_and_continuation_fit_into_the_context_and_new_tokens_have_the_right_of_way(
    prompt_tokens: int, new: int, kept: tuple[int, int]
) -> None:
    assert fit(100, prompt_tokens, new) == kept


def test_the_order_carries_the_prompts_there_are_when_it_starts_as_plain_data() -> None:
    asked = spec(prompt(text="a"))
    task = make_tasks([asked], altlas.load_config(environ={}).gpu, 1)[0]
    assert asked.generation is not None
    asked.generation.prompts.append(prompt(text="b\ud800", new=3))
    order = Order(*marshal.loads(marshal.dumps(pack(Attempt(task, 1, 0, 0.0)))))
    assert order.generation == (None, "small", (("a", 20, 0.0, 1), ("b\ud800", 3, 0.0, 1)))
    assert pack(Attempt(make_tasks([TaskSpec()], altlas.load_config(environ={}).gpu, 1)[0], 1, 0, 0.0))[-1] is None


def test_tasks_with_different_prompts_share_a_demand() -> None:
    first, second = make_tasks([spec(prompt()), spec(prompt(50))], altlas.load_config(environ={}).gpu, 1)
    assert first.demand is second.demand


def test_a_record_may_not_name_the_kind_and_is_told_where_it_belongs() -> None:
    assert not KINDS["text_generation"].recorded
    with pytest.raises(WorkloadError) as caught:
        altlas.Workload.from_records([{"kind": "text_generation"}])
    assert "record 0: kind: 'text_generation' is submitted through the API of `altlas serve` only" in str(caught.value)
    assert "allowed: linear, " in str(caught.value)
    with pytest.raises(WorkloadError) as caught:
        altlas.Workload.from_records([{"kind": "text_generatio"}])
    assert "text_generation" not in str(caught.value).replace("'text_generatio'", "")


# --- what it costs on a simulated GPU ---------------------------------------------------------------------------------


def test_reading_a_long_prompt_is_bound_by_arithmetic_and_a_step_by_the_weights() -> None:
    cost = generation_cost(Generation(LARGE, [prompt(4000, 3)]), A100)
    launches_s = LARGE.layers * KERNELS_PER_LAYER * LAUNCH_S
    flops = 2 * LARGE.parameters * 4000 + 4 * LARGE.layers * LARGE.width * 4000 * 4001 / 2
    assert cost.prefill_s == pytest.approx(flops / A100.peak_flops["fp16"] + launches_s)
    step_bytes = LARGE.weights_bytes + 4001 * LARGE.kv_bytes_per_token
    assert len(cost.step_s) == 2
    assert cost.step_s[0] == pytest.approx(step_bytes / A100.memory_bandwidth_bytes_per_s + launches_s)
    assert cost.seconds == pytest.approx(cost.prefill_s + sum(cost.step_s))
    assert 0.0 < cost.intensity < 1.0


def test_the_flops_and_bytes_of_a_batch_are_those_of_its_rows_but_for_the_weights_they_share() -> None:
    prompts = [prompt(10, 20), prompt(30, 5), prompt(1, 20), prompt(7, 1)]
    whole = generation_cost(Generation(SMALL, prompts), A100)
    alone = [generation_cost(Generation(SMALL, [each]), A100) for each in prompts]
    assert whole.flops == pytest.approx(sum(cost.flops for cost in alone))
    assert len(whole.step_s) == 19
    readings = 20 + 5 + 20 + 1  # of the weights, each alone
    assert whole.bytes_moved == pytest.approx(
        sum(cost.bytes_moved for cost in alone) - (readings - 20) * SMALL.weights_bytes
    )
    assert whole.seconds < sum(cost.seconds for cost in alone)


def test_a_small_model_takes_what_launching_its_kernels_takes() -> None:
    cost = generation_cost(Generation(SMALL, [prompt(10, 101)]), A100)
    launches_s = SMALL.layers * KERNELS_PER_LAYER * LAUNCH_S
    assert launches_s < cost.step_s[0] < 1.1 * launches_s


def test_a_simulated_attempt_takes_its_cost_and_says_that_there_is_no_text() -> None:
    asked = spec(prompt(10, 20), prompt(2000, 30))
    result = simulate(asked)
    (attempt,) = result.log.attempts()
    assert asked.generation is not None
    cost = generation_cost(asked.generation, A100)
    assert attempt.ended_s == pytest.approx(cost.seconds)
    assert attempt.iterations == 1.0
    detail = attempt.detail
    assert detail is not None
    assert (detail["simulated"], detail["measured"], detail["model"]) == (True, False, "small")
    first, second = detail["generation"]
    assert first == {
        "text": "[simulated on A100-SXM4-80GB: no text was generated]",
        "tokens": 20,
        "prompt_tokens": 10,
        "time_to_first_token_s": pytest.approx(cost.prefill_s),
        "finish_reason": "length",
        "prompt_truncated": False,
    }
    assert (second["tokens"], second["prompt_tokens"], second["prompt_truncated"]) == (30, 994, True)
    assert detail["tokens_per_s"] == pytest.approx(50 / cost.seconds)
    assert replay(result.event_lines()).difference is None


def test_simulated_generations_that_share_a_gpu_share_its_rate() -> None:
    result = simulate(*[spec(prompt(10, 100)) for _ in range(2)])
    alone_s = generation_cost(Generation(SMALL, [prompt(10, 100)]), A100).seconds
    for attempt in result.log.attempts():
        assert attempt.detail is not None
        assert attempt.ended_s == pytest.approx(2 * alone_s)
        assert attempt.detail["decode_s"] + attempt.detail["prefill_s"] == pytest.approx(2 * alone_s)


def test_prompts_added_while_a_task_waits_are_continued_too_and_later_ones_are_not() -> None:
    late = Generation(SMALL, [prompt()])
    first = spec(prompt(10, 500))
    waiting = TaskSpec(kind="text_generation", generation=late, memory_bytes=1 << 20)
    late.prompts.append(prompt(5, 7))
    result = simulate(first, waiting, **{"gpu.workload.max_concurrent_tasks_per_gpu": 1})
    details = [attempt.detail for attempt in result.log.attempts()]
    assert [len(detail["generation"]) for detail in details if detail] == [1, 2]


def test_a_simulated_generation_that_is_cancelled_or_lost_ends_like_any_other_task() -> None:
    long = spec(prompt(10, 1000), cancel_s=0.01)
    result = simulate(long, spec(prompt(10, 1000), submit_s=0.0))
    assert list(result.tasks.state) == ["CANCELLED", "COMPLETED"]
    settings = altlas.load_config(None, {"gpu.backend": "simulated", "gpu.devices": ["2x A100"]}, environ={})
    lost = altlas.run(settings, altlas.Workload((spec(prompt(10, 1000)),)), faults=[altlas.Fault(0.01, 0, "lose_gpu")])
    assert list(lost.tasks.state) == ["COMPLETED"]
    assert [attempt.outcome for attempt in lost.log.attempts()] == ["device_lost", "finished"]


def test_the_same_generations_give_the_same_log() -> None:
    runs = [simulate(*[spec(prompt(10 + i, 5 * i + 1)) for i in range(20)]).event_log_sha256 for _ in range(2)]
    assert runs[0] == runs[1]
