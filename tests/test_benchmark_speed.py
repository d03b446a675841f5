"""The speed benchmark: what is counted, fitted, kept and judged; and one tiny run of it all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from benchmarks.speed import growth, limit, measuring, peers, report, rollout, update
from benchmarks.speed.measuring import Case, Stopwatch, Unavailable, fitted_slope, interleave
from benchmarks.speed.report import BARS, Bar, Results, bar_table, case_table
from benchmarks.speed.shapes import model_argument, random_model, shape
from benchmarks.speed.workloads import Workload, collect
from benchmarks.throughput import Throughput
from benchmarks.toy import Toy
from lm_envs.language_model import LanguageModel
from tests.models import build_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = model_argument("tiny", tmp_path_factory.mktemp("models"))
    assert path is not None
    return path


def case(**changes: Any) -> Case:
    values = {"ours": [4.0, 6.0, 30.0], "peer": [2.0, 2.0, 10.0]}
    given = {
        "part": "rollout",
        "name": "bundled, equal",
        "settings": {},
        "unit": "tokens/s",
        "values": values,
    }
    return Case(**(given | {"peer": "peer"} | changes))


def shown(renderable: Any, width: int = 200) -> str:
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("with_head", [False, True])
def test_operations_are_those_that_torch_counts(architecture: str, with_head: bool) -> None:
    model: Any = build_model(architecture, 300, attn_implementation="eager")
    slots, context = 3, 7
    cache = DynamicCache(config=model.config)
    ids = torch.ones(slots, context, dtype=torch.long)
    part = model if with_head else model.base_model
    with torch.no_grad():
        part(ids[:, :-1], past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            part(ids[:, -1:], past_key_values=cache)
    cost = limit.step_cost(model, slots, context, with_head=with_head)
    assert cost.operations == counter.get_total_flops()


def test_bytes_by_hand() -> None:
    model = build_model("llama", 100)  # 2 layers, width 16, 2 of 4 heads stored, 32 inner; a head of its own
    weights = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32)
    stored = 2 * 2 * 8  # keys and values of a token: 2 layers of 2 heads of size 4
    cost = limit.step_cost(model, 5, 10, with_head=False)
    assert cost.bytes == 4 * (weights + 5 * 10 * stored)
    assert limit.step_cost(model, 5, 10, with_head=True).bytes == cost.bytes + 4 * 16 * 100
    assert limit.step_cost(model.double(), 5, 10, with_head=False).bytes == 2 * cost.bytes


def test_the_slower_of_arithmetic_and_memory_is_the_limit() -> None:
    cost = limit.Cost(operations=100.0, bytes=30.0)
    assert cost.seconds(50.0, 10.0) == 3.0
    assert cost.seconds(20.0, 10.0) == 5.0


def test_sizes_of_the_shapes() -> None:
    for name, millions in (("gpt2", 124), ("qwen2", 494)):
        with torch.device("meta"):
            model = torch.nn.Module()
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_config(shape(name))
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert shape("gpt2").vocab_size == 50257
    assert shape("long").hidden_size == shape("long", vocab_size=5000).hidden_size
    with pytest.raises(ValueError, match="'gpt5'"):
        shape("gpt5")


def test_a_shape_is_a_model_that_loads(tmp_path: Path) -> None:
    path = model_argument("tiny", tmp_path, vocab_size=3000)
    language_model = LanguageModel.load(path)
    assert (language_model.vocab_size, language_model.hidden_size) == (3000, 16)
    text = "The baker is sad."
    assert language_model.encode(text) == LanguageModel.load(None, lazy=True).encode(text)
    assert model_argument("tiny", tmp_path, vocab_size=3000) == path
    assert model_argument("bundled", tmp_path) is None
    assert model_argument(str(path), tmp_path / "other") == path
    with pytest.raises(ValueError, match="at least 2048"):
        model_argument("tiny", tmp_path, vocab_size=1000)


def test_slopes() -> None:
    x = [1, 10, 100, 1000]
    assert fitted_slope(x, [5.0] * 4) == pytest.approx(0)
    assert fitted_slope(x, [3 * value**1.5 for value in x]) == pytest.approx(1.5)
    assert growth.curve("c", {}, "ms", {2: [9.0, 1.0, 2.0], 4: [8.0]}).facts == {
        growth.SLOPE: pytest.approx(2)
    }
    for points in (([1], [1]), ([1, 2], [0, 1]), ([1, 2], [1])):
        with pytest.raises(ValueError, match="slope"):
            fitted_slope(*points)


def test_contenders_take_turns() -> None:
    calls: list[str] = []

    def contender(name: str) -> Any:
        def run() -> float:
            calls.append(name)
            if name == "broken":
                raise Unavailable("not today")
            return float(len(calls))

        return run

    names = ("first", "broken", "slow")
    values, missing = interleave({name: contender(name) for name in names}, 2, cold=("slow",))
    assert calls == ["first", "broken", "first", "slow", "first", "slow"]
    assert values == {"first": [3.0, 5.0], "slow": [4.0, 6.0]}
    assert missing == {"broken": "not today"}
    with pytest.raises(ValueError, match="repetitions"):
        interleave({}, 0)


def test_ratios_are_within_a_repetition() -> None:
    assert case().ratios("ours") == [2.0, 3.0, 3.0]
    assert case().ratio("ours") == 3.0
    assert case().ratio("peer", "ours") == pytest.approx(1 / 3)
    assert case().ratio("nobody") is None
    assert case(peer="nobody").ratio("ours") is None
    assert case().fastest(("peer", "ours", "nobody")) == "ours"
    assert case().fastest(("nobody",)) == ""


def test_a_stopwatch_counts_nested_calls_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(measuring, "now", lambda device: float(next(clock)))
    watch = Stopwatch("cpu")
    inner = watch.wrap(lambda x: x + 1)
    outer = watch.wrap(lambda x: inner(inner(x)))
    assert outer(1) == 3
    assert watch.seconds == 1.0
    with pytest.raises(ZeroDivisionError):
        watch.wrap(lambda: 1 / 0)()
    assert (inner(1), watch.seconds) == (2, 3.0)


def test_memory_that_is_freed_can_be_used_again() -> None:
    size = 1_000_000

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(size)

    def together() -> None:
        _ = [torch.zeros(size) for _ in range(3)]

    for run, peak in ((one_after_the_other, 4 * size), (together, 12 * size)):
        assert growth.peak_bytes(run) == pytest.approx(peak, rel=1e-3)


def test_bytes_of_a_buffer() -> None:
    class Holder:
        def __init__(self) -> None:
            self.one = np.zeros((3, 4), np.int64)
            self.again = self.one
            self.some = [np.zeros(5, np.float32), (torch.zeros(2),)]
            self.named = {"x": np.zeros(7, bool)}
            self.number = 3

    assert growth.stored_bytes(Holder()) == 96 + 20 + 8 + 7


def results(path: Path, **changes: Any) -> Results:
    return Results(path, {"device": "a", "torch": "1"} | changes)


def test_results_are_merged_by_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results" / "speed.json"
    options = {"repetitions": 3}
    results(path).add(case(), options)
    results(path).add(case(name="gpt2, equal"), options)
    results(path, torch="2").add(case(unit="other"), options)
    results(path).add(case(values={"ours": [1.0]}, peer=""), options)
    first, other = results(path), results(path, torch="2")
    assert [key[1] for key in first.cases] == ["gpt2, equal", "bundled, equal"]
    assert first.cases["rollout", "bundled, equal"].values == {"ours": [1.0]}
    assert [c.unit for c in other.cases.values()] == ["other"]
    assert results(path, device="b").cases == {}
    assert len(json.loads(path.read_text())) == 2

    assert first.is_done("rollout", "gpt2, equal", options)
    assert not first.is_done("rollout", "gpt2, equal", {"repetitions": 5})
    assert not first.is_done("update", "gpt2, equal", options)
    assert first.other_code() == []
    monkeypatch.setattr(report, "code_checksum", lambda: "changed")
    assert not results(path).is_done("rollout", "gpt2, equal", options)
    assert results(path).other_code() == ["rollout: gpt2, equal", "rollout: bundled, equal"]


def test_a_case_with_a_missing_peer_is_measured_again(tmp_path: Path) -> None:
    kept = results(tmp_path / "speed.json")
    kept.add(case(missing={"TRL": "not installed"}), {})
    assert not kept.is_done("rollout", "bundled, equal", {})


def test_verdicts() -> None:
    bar = Bar("text", "rollout", "bundled, equal", lambda c: c.ratio("ours"), 3.0)
    measured = {("rollout", "bundled, equal"): case()}
    assert bar.verdict(measured) == (3.0, "holds")
    assert bar.verdict({}) == (None, "not measured")
    assert bar.verdict({("rollout", "bundled, equal"): case(values={})}) == (None, "not measured")
    for bound, at_least, verdict in ((3.1, True, "missed"), (3.0, False, "holds"), (2.9, False, "missed")):
        assert Bar("", *bar_key(bar), bound, at_least).verdict(measured)[1] == verdict
    sized = Bar("", *bar_key(bar), 3.0, sizes=(64, 48))
    for settings, verdict in (
        ({"slots": 64, "new tokens": "48"}, "holds"),
        ({"slots": 64, "new tokens": "uniform 1 to 48"}, "holds"),
        ({"slots": 8, "new tokens": "48"}, "measure with 64 slots, 48 new tokens"),
    ):
        assert sized.verdict({("rollout", "bundled, equal"): case(settings=settings)}) == (3.0, verdict)


def bar_key(bar: Bar) -> tuple[Any, ...]:
    return bar.part, bar.case, bar.value


def test_every_bar_finds_what_is_measured(tmp_path: Path) -> None:
    names = {(part, name) for part, name, _ in Throughput().measurements(tmp_path, 1)}
    names |= {("growth", growth.MEMORY + "vocabulary")}  # one of a group
    for bar in BARS:
        if bar.device == "cpu":
            assert (bar.part, bar.case) in names, bar.text


def test_tables_name_what_is_missing_or_missed() -> None:
    ragged = case(name="bundled, ragged", values={rollout.ROLLOUT: [1.0], "peer": [1.0]})
    ragged.settings |= {"slots": 64, "new tokens": "uniform 1 to 48"}
    text = shown(bar_table({("rollout", ragged.name): ragged}, "cpu"))
    row = next(line for line in text.splitlines() if "ragged" in line)
    assert "missed" in row
    assert ">= 3" in row
    assert text.count("not measured") == sum(bar.device == "cpu" for bar in BARS) - 1
    table = shown(case_table(case(missing={"TRL": "pip install it"}, facts={"slope": 0.5})))
    assert "3.00x" in table
    assert "2.00 - 3.00" in table
    assert next(line for line in table.splitlines() if "TRL" in line).count("missing") == 1
    assert "0.5" in table


@pytest.mark.parametrize("ragged", [False, True])
def test_episodes_end_where_the_workload_says(tiny: str, ragged: bool) -> None:
    work = Workload("tiny", tiny, 6, 12, ragged=ragged)
    learner, callback = work.learner(reference=False)
    env: Any = learner.env
    assert sum(work.lengths(seed) for seed in range(200)).mean() / 200 == pytest.approx(
        6.5 if ragged else 12, abs=0.3
    )
    lengths = []
    for _ in range(3):
        collect(learner, callback)
        lengths += [info["l"] for info in learner.ep_info_buffer or []]
        learner.ep_info_buffer.clear()  # type: ignore[union-attr]
    assert max(lengths) <= 12
    assert (min(lengths) < 12) is ragged
    if not ragged:
        assert len(lengths) == 18
    actions = learner.rollout_buffer.actions
    eos = env.get_attr("language_model")[0].eos_token_id
    assert (actions == eos).any() == ragged


def test_a_missing_trl_is_named(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    measured = update.iterations(Workload("tiny", tiny, 2, 2), 1)
    assert list(measured.values) == [update.OURS]
    assert "lm-envs[peers]" in measured.missing[peers.GRPO]
    assert peers.GRPO in shown(case_table(measured))


def test_curves_of_a_tiny_model(tiny: str, tmp_path: Path) -> None:
    work = Workload("tiny", tiny, 2, 1)
    generated = growth.generated(work, (2, 4), 1)
    assert {name: len(values) for name, values in generated.values.items()} == {"2": 1, "4": 1}
    assert list(growth.slots(work, (1, 2), 1).values) == ["1", "2"]
    sizes = {"slots": (1, 16), "lengths": (2, 40), "vocabularies": (2048, 4096)}
    episodes, lengths, vocabularies = growth.update_memory(
        Workload("tiny", None, 4, 4),
        tmp_path,
        **sizes,  # type: ignore[arg-type]
    )
    assert episodes.ratio("16") > 4  # type: ignore[operator]
    assert 1 < lengths.ratio("40") < 20  # type: ignore[operator]
    assert vocabularies.settings["model"] == "tiny"
    ours, stock = growth.buffer_bytes(work, (4, 16))
    per_step = 256 * (8 + 1 + 1)  # one observation: ids, and two masks
    assert stock.values["16"][0] - stock.values["4"][0] > 12 * per_step
    assert ours.values["16"][0] < stock.values["16"][0] / 4


def test_a_tiny_run(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr(report, "code_checksum", lambda: "unchanged")
    monkeypatch.setattr(limit, "matrix_rate", lambda *_: 10.0)
    monkeypatch.setattr(limit, "copy_rate", lambda *_: 10.0)
    out = tmp_path / "speed.json"
    run = Throughput(
        parts=("rollout", "update", "limit"), models=(tiny,), repetitions=1, slots=2, new_tokens=3, out=out
    )
    run()
    assert "not measured" in capsys.readouterr().out
    (kept,) = json.loads(out.read_text()).values()
    names = {name for entry in kept["cases"] for name in entry["case"]["values"]}
    names |= {name for entry in kept["cases"] for name in entry["case"]["missing"]}
    assert names == {
        *(peers.DYNAMIC, peers.STATIC, peers.CONTINUOUS, peers.RECOMPUTED, peers.GRPO),
        *(rollout.ROLLOUT, rollout.UNREFERENCED, rollout.ENVIRONMENT, rollout.UNREWARDED, rollout.DECODER),
        *(rollout.UNJUDGED, rollout.SHARE, update.OURS, limit.STEP, limit.STEP_AND_LOGITS),
    }
    writing = Case(**kept["cases"][0]["case"])
    assert writing.peer in (peers.DYNAMIC, peers.STATIC)
    assert writing.ratio(writing.peer) == 1.0
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.tmp"))

    def forbidden(*_: Any, **__: Any) -> Any:
        raise RuntimeError("measured again")

    monkeypatch.setattr(limit, "reached", forbidden)
    run()  # nothing is left to do but what lacks a peer
    assert kept["cases"][-1] in json.loads(out.read_text()).popitem()[1]["cases"]


def test_toys_stand_beside_gymnasium() -> None:
    toys = Toy(slots=2, single_steps=50, vector_steps=3).case(1)
    assert toys.peer == "single, FrozenLake-v1"
    names = {name.partition("-")[0] for name in toys.values}
    assert names == {
        "single, FrozenLake",
        "single, Taxi",
        "single, TextGen",
        "vector, CartPole",
        "vector, TextGen",
    }


def test_random_models_are_equal_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = random_model("tiny"), random_model("tiny")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
