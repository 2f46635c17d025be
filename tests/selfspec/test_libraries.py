"""Libraries that call generate() for their users: structured output and evaluation, as they come."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checks import own_generate
from transformers import AutoModelForCausalLM, AutoTokenizer

import layer_skip
import selfspec

PROMPTS = ["def f(x):\n    return ", "x = "]
CALL = r"[a-z]{3,6}\([0-9]{1,4}, [a-z]+\)"
WAYS = [{"exit_layer": 3, "draft_length": 4}, {"draft": "lookup"}, {"draft": "low_bit"}, {"draft": "auto"}]


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(layer_skip.REFERENCE_MODEL, padding_side="left")


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(layer_skip.REFERENCE_MODEL, dtype=torch.float32).eval()


def test_lm_format_enforcer_constrains_a_wrapped_model_as_ever(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lmformatenforcer

    # Where transformers 4 kept PreTrainedTokenizerBase, which the library still imports from there.
    old_place = "transformers.tokenization_utils"
    monkeypatch.setitem(sys.modules, old_place, transformers.tokenization_utils_base)
    from lmformatenforcer.integrations import transformers as integration

    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    vocabulary = integration.build_token_enforcer_tokenizer_data(tokenizer)

    def request() -> dict[str, Any]:
        parser = lmformatenforcer.RegexParser(CALL)
        allowed = integration.build_transformers_prefix_allowed_tokens_fn(vocabulary, parser)
        return {**inputs, "max_new_tokens": 24, "prefix_allowed_tokens_fn": allowed}

    expected = own_generate(model, **request())
    for setting in WAYS:
        selfspec.wrap(model, **setting, strict=True)
        assert torch.equal(model.generate(**request()), expected), setting
        assert model.speculation.total.calls == 1


def test_outlines_writes_what_it_writes_without_the_wrap(model: Any, tokenizer: Any) -> None:
    """Its processor counts its calls, so that the model's own generate serves it, and says so."""
    import outlines

    def write() -> tuple[str, list[str]]:
        generator = outlines.from_transformers(model, tokenizer)
        form = outlines.types.Regex(CALL)
        return (
            generator(PROMPTS[0], form, max_new_tokens=24),
            generator.batch(PROMPTS, form, max_new_tokens=24),
        )

    expected = write()
    selfspec.wrap(model)
    with pytest.warns(UserWarning, match="the logits processor Outlines.* cannot be speculated"):
        assert write() == expected


QUESTIONS = ("def read_lines(path):\n", "class Stack:\n    def push", "import os\nimport sys\n\ndef main")


def evaluated(model: Any, tokenizer: Any, folder: Path, rows: int) -> list[Any]:
    """Answers and scores of a generation task under lm-eval."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    documents = folder / "task.jsonl"
    lines = (json.dumps({"question": q, "answer": "x"}) for q in QUESTIONS)
    documents.write_text("\n".join(lines), encoding="utf-8")
    task = ConfigurableTask(
        config={
            "task": "lines",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(documents)}, "cache_dir": str(folder)},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n", '"""'], "max_gen_toks": 24, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows, max_length=256)
    results = lm_eval.evaluate(harness, {"lines": task}, log_samples=True, bootstrap_iters=0)
    samples = sorted(results["samples"]["lines"], key=lambda sample: sample["doc_id"])
    return [(sample["resps"], sample["exact_match"]) for sample in samples]


@pytest.mark.parametrize("rows", [1, 3])
def test_lm_eval_reads_the_same_answers(model: Any, tokenizer: Any, tmp_path: Path, rows: int) -> None:
    """Its stopping criterion remembers which rows are done, and is asked about all of them at once."""
    expected = evaluated(model, tokenizer, tmp_path, rows)
    assert len(expected) == len(QUESTIONS)
    selfspec.wrap(model, strict=True)
    assert evaluated(model, tokenizer, tmp_path, rows) == expected
    assert model.speculation.total.calls == len(QUESTIONS) // rows
