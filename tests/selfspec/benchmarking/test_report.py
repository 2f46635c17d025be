"""No speed without the same text."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from tiny_models import PAD, random_prompts

from selfspec.benchmarking.contenders import (
    AR,
    EARLY_EXIT,
    GENERATE,
    SELFSPEC,
    Contender,
    standard_contenders,
)
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.render import legend, markdown_table, plot, terminal_table
from selfspec.benchmarking.report import Report
from selfspec.benchmarking.session import run_comparison

SETTINGS = {"exit_layer": 2, "draft_length": 3}
PROMPTS = random_prompts(8, 8, 8)["input_ids"].tolist()
LIAR = Contender("liar", "writes something else", arguments={"repetition_penalty": 9.0})
SHORT = Contender("short", "stops early", arguments={"max_new_tokens": 5})


def measured(model: Any, *more: Contender, settings: dict[str, Any] = SETTINGS, **workload: Any) -> Report:
    contenders = (*standard_contenders(2, settings), *more)
    return run_comparison(model, contenders, PROMPTS, Workload(8, **workload), PAD, {"model": "tiny"})


def shown(report: Report) -> str:
    """The report as a person sees it."""
    console = Console(width=120, file=io.StringIO())
    console.print(terminal_table(report), *legend(report), sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above


def test_a_contender_with_another_text_gets_no_speed(llama: Any) -> None:
    report = measured(llama, LIAR)
    line = report.line("liar")
    assert report.refused == (line,)
    assert line.tokens_per_second is None
    assert (line.seconds, line.faster_than) == ((), {})
    assert all("liar" not in other.faster_than for other in report.lines)
    assert "its text differs from that of generate" in str(line.refused)


def test_a_refused_contender_has_no_number_anywhere(llama: Any) -> None:
    report = measured(llama, LIAR)
    row = next(line for line in markdown_table(report).splitlines() if line.startswith("| liar"))
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["refused", "", "", ""]
    assert "refused" in shown(report)
    data = json.loads(json.dumps(report.as_dict()))
    assert next(line for line in data["lines"] if line["name"] == "liar")["tokens_per_second"] is None


def test_another_number_of_tokens_gets_no_speed(llama: Any) -> None:
    assert measured(llama, SHORT).line("short").refused == "it wrote another number of tokens"


def test_every_speed_comes_with_ratios_and_a_verdict(llama: Any) -> None:
    report = measured(llama)
    line = report.line(SELFSPEC)
    assert set(line.faster_than) == {GENERATE, AR, EARLY_EXIT, "prompt_lookup"}
    assert line.checked == "3 of 3; 3 of 3 as AR"
    assert report.line(AR).checked == "3 of 3"
    assert len(line.seconds) == 3
    assert line.acceptance_rate is not None and 0 <= line.acceptance_rate <= 1
    assert line.acceptance_length is not None and line.acceptance_length >= 1
    assert 0 < line.distinct_3grams <= 1
    assert "E = 2, K = 3" in line.about
    assert report.rounding_noise is None


def test_ar_drafts_nothing_and_says_so(llama: Any) -> None:
    line = measured(llama).line(AR)
    assert (line.acceptance_rate, line.acceptance_length) == (None, None)


def test_sampled_text_is_compared_with_ar_under_the_same_seed(llama: Any) -> None:
    report = measured(llama, temperature=1.0)
    assert report.line(SELFSPEC).checked == "3 of 3 (as AR)"
    assert report.line(GENERATE).checked == "own draws"
    assert not report.refused


def test_rejection_promises_no_text(llama: Any) -> None:
    report = measured(llama, settings={**SETTINGS, "acceptance": "rejection"}, temperature=1.0)
    assert report.line(SELFSPEC).checked == "own draws"
    assert report.line(SELFSPEC).tokens_per_second is not None


def test_a_comparison_needs_the_models_own_generate(llama: Any) -> None:
    contenders = standard_contenders(2, SETTINGS)[1:]
    with pytest.raises(ValueError, match="contenders need 'generate'"):
        run_comparison(llama, contenders, PROMPTS, Workload(8), PAD, {})


def test_tables_tell_the_conditions(llama: Any) -> None:
    report = measured(llama)
    for text in (shown(report), markdown_table(report)):
        flat = " ".join(text.split())
        assert "1 threads, float32, batch 1, greedy, 3 prompts of 8 tokens, 8 new tokens" in flat
        assert "selfspec: drafts of its own, one verification pass, E = 2, K = 3" in flat
        for word in ("torch", "transformers", "20th to 80th percentile", "distinct"):
            assert word in flat


def test_the_plot_is_a_png_with_refused_contenders_too(llama: Any) -> None:
    assert plot(measured(llama, LIAR)).startswith(b"\x89PNG")
