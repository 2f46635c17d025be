"""What users put around generate(): chats, threads that stream, structured output, evaluation harnesses."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate
from tiny_models import VOCAB, random_prompts, tiny_model
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    TextIteratorStreamer,
    pipeline,
)

import selfspec

SETTINGS = {"exit_layer": 2, "draft_length": 4, "strict": True}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One character per token: "!" is 0, "a" is 64."""
    backend = Tokenizer(models.BPE({chr(33 + i): i for i in range(VOCAB)}, []))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="!", padding_side="left", chat_template=TEMPLATE
    )


def chat(model: Any, tokenizer: Any, generate: Any) -> list[str]:
    """Three questions over one cache, as the documentation of transformers writes it."""
    messages: list[dict[str, str]] = []
    cache, answers = DynamicCache(), []
    for question in ("hello", "why?", "and-then?"):
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = generate(model, **inputs, past_key_values=cache, max_new_tokens=9)
        answers.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :]))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_a_chat_over_one_cache_is_the_models_own(llama: Any, tokenizer: Any) -> None:
    expected = chat(llama, tokenizer, own_generate)
    selfspec.wrap(llama, **SETTINGS)
    assert chat(llama, tokenizer, lambda model, **request: model.generate(**request)) == expected
    assert llama.speculation.total.calls == 3


def test_a_chat_pipeline_is_the_models_own(llama: Any, tokenizer: Any) -> None:
    messages = [[{"role": "user", "content": text}] for text in ("hello", "x")]
    options = {"max_new_tokens": 8, "do_sample": False, "batch_size": 2}
    expected = pipeline("text-generation", model=llama, tokenizer=tokenizer)(messages, **options)
    selfspec.wrap(llama, **SETTINGS)
    assert pipeline("text-generation", model=llama, tokenizer=tokenizer)(messages, **options) == expected
    assert llama.speculation.total.calls > 0


def test_a_thread_generates_while_another_one_reads_the_stream(llama: Any, tokenizer: Any) -> None:
    request = {**random_prompts(9), "max_new_tokens": 20}
    expected = tokenizer.decode(own_generate(llama, **request)[0, 9:])
    selfspec.wrap(llama, **SETTINGS)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=llama.generate, kwargs={**request, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


class EndsWithText(StoppingCriteria):
    """As an evaluation harness stops: remembers which rows are done, and decodes their last tokens."""

    def __init__(self, tokenizer: Any, stop: str, rows: int) -> None:
        self._tokenizer, self._stop, self._done = tokenizer, stop, [False] * rows
        self.asked = 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.asked += 1
        for row, text in enumerate(self._tokenizer.batch_decode(input_ids[:, -len(self._stop) :])):
            self._done[row] = self._done[row] or self._stop in text
        return torch.tensor(self._done)


@pytest.mark.parametrize("draft_length", [0, 1, 4, 8])
def test_a_criterion_with_a_memory_is_asked_once_a_token_in_order(
    llama: Any, tokenizer: Any, draft_length: int
) -> None:
    request = {**random_prompts(9), "max_new_tokens": 24}
    plain = own_generate(llama, **request)[0]
    stop = tokenizer.decode(plain[20:22])
    criteria = [EndsWithText(tokenizer, stop, 1) for _ in range(2)]
    expected = own_generate(llama, **request, stopping_criteria=[criteria[0]])
    assert expected.shape[1] < 9 + 24
    selfspec.wrap(llama, exit_layer=2, draft_length=draft_length, strict=True)
    assert torch.equal(llama.generate(**request, stopping_criteria=[criteria[1]]), expected)
    assert criteria[0].asked == criteria[1].asked


@pytest.mark.parametrize("draft_length", [0, 1, 4, 8])
def test_a_criterion_with_a_memory_of_several_rows_is_asked_as_in_the_models_own_loop(
    llama: Any, tokenizer: Any, draft_length: int
) -> None:
    request = {**random_prompts(6, 11, 3), "max_new_tokens": 20, "eos_token_id": 7}
    stop = tokenizer.decode(own_generate(llama, **request)[0, 18:19])
    criteria = [EndsWithText(tokenizer, stop, 3) for _ in range(2)]
    expected = own_generate(llama, **request, stopping_criteria=[criteria[0]])
    selfspec.wrap(llama, exit_layer=2, draft_length=draft_length, strict=True)
    assert torch.equal(llama.generate(**request, stopping_criteria=[criteria[1]]), expected)
    assert criteria[0].asked == criteria[1].asked


class Automaton:
    """A structured-output processor with a state that moves on at every call, as many libraries have one."""

    def __init__(self) -> None:
        self._state = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._state += 1
        allowed = torch.arange(scores.shape[1]) % 7 == self._state % 7
        return scores.masked_fill(~allowed, -float("inf"))


def test_a_processor_with_a_state_is_left_to_the_model_itself(llama: Any) -> None:
    request = {**random_prompts(9), "max_new_tokens": 14}
    expected = own_generate(llama, **request, logits_processor=[Automaton()])
    selfspec.wrap(llama, exit_layer=2, draft_length=4)
    with exactly_one_warning(naming="the logits processor Automaton"):
        out = llama.generate(**request, logits_processor=[Automaton()])
    assert torch.equal(out, expected)
    assert (expected[0, 9:] % 7).tolist() == [step % 7 for step in range(1, 15)]


WORDS = ("{a:1}", "{a:23}", "{bc:1}", "[x,y]", "[xx]")


@pytest.mark.parametrize(
    "setting",
    [SETTINGS, {**SETTINGS, "tree": "siblings"}, {"draft": "lookup"}, {"draft": "auto"}, {"draft": "hybrid"}],
    ids=str,
)
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "num_return_sequences": 3}], ids=str)
def test_a_grammar_that_raises_on_prefixes_outside_of_it_is_kept(
    llama: Any, tokenizer: Any, setting: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """Any number of words; what was found in the prompt, or stands beside a chain, may be outside of them."""
    prompt = torch.tensor([tokenizer("{a:9}{a:1}{q}[x,y]{a:1").input_ids])

    def allowed(row: int, ids: Tensor) -> list[int]:
        written = tokenizer.decode(ids[prompt.shape[1] :])
        while word := next((w for w in WORDS if written.startswith(w)), None):
            written = written[len(word) :]
        going = [word[len(written)] for word in WORDS if word.startswith(written) and word != written]
        assert going, f"{written!r} is outside of the grammar"
        return sorted({tokenizer.convert_tokens_to_ids(character) for character in going})

    request = {"input_ids": prompt, "max_new_tokens": 30, "prefix_allowed_tokens_fn": allowed, **sampling}
    if sampling:
        selfspec.wrap(llama, exit_layer=1, draft_length=0)
        torch.manual_seed(0)
        expected = llama.generate(**request)
    else:
        expected = own_generate(llama, **request)
    selfspec.wrap(llama, **setting)
    torch.manual_seed(0)
    assert torch.equal(llama.generate(**request), expected)


def test_a_wrapped_model_that_drafts_for_another_is_the_model_itself() -> None:
    target, assistant = tiny_model("llama"), tiny_model("llama", seed=1)
    request = {**random_prompts(9), "max_new_tokens": 12, "assistant_model": assistant}
    expected = own_generate(target, **request)
    selfspec.wrap(assistant, exit_layer=2, draft_length=3)
    with pytest.warns(UserWarning, match="cannot be speculated"):
        assert torch.equal(target.generate(**request), expected)


@pytest.mark.parametrize("draft", [{}, {"exit_layer": 2, "draft_length": 4}], ids=str)
def test_what_torch_compile_made_of_a_model_is_wrapped_as_the_model_inside(
    llama: Any, draft: dict[str, Any]
) -> None:
    request = {**random_prompts(12, 5), "max_new_tokens": 9}
    expected = own_generate(llama, **request)
    compiled = torch.compile(llama, backend="eager")
    assert selfspec.wrap(compiled, **draft, strict=True) is compiled
    for model in (compiled, llama):
        assert selfspec.is_wrapped(model)
        assert torch.equal(model.generate(**request), expected)
    assert compiled.speculation.total.calls == 2
    selfspec.unwrap(compiled)
    assert not selfspec.is_wrapped(llama)
    assert not {"generate", "speculation"} & (vars(llama).keys() | vars(compiled).keys())
    assert torch.equal(compiled.generate(**request, custom_generate=selfspec.generate), expected)


def test_a_decoding_method_that_a_wrapped_model_has_anyway_changes_nothing(llama: Any, recwarn: Any) -> None:
    request = {**random_prompts(12, 5), "max_new_tokens": 9}
    expected = own_generate(llama, **request)
    selfspec.wrap(llama, **SETTINGS)
    assert torch.equal(llama.generate(**request, custom_generate=selfspec.generate), expected)
    assert llama.speculation.total.calls == 1


def test_the_default_device_may_be_another_than_the_models(llama: Any) -> None:
    """Scripts set it once, to a GPU; here to one that holds no numbers, so that what is put there fails."""
    prompts = random_prompts(9, 21, 2, seed=1)
    requests: list[dict[str, Any]] = [{"do_sample": False}, {"do_sample": True, "temperature": 0.8}]
    expected = []
    for request in requests:
        selfspec.wrap(llama, draft_length=0)
        expected.append(seeded(llama, **prompts, **request))
    with torch.device("meta"):
        for settings in ({"draft_length": 0}, SETTINGS, {"draft": "lookup"}, {"tree": "siblings"}, {}):
            selfspec.wrap(llama, **settings)
            for request, text in zip(requests, expected, strict=True):
                assert torch.equal(seeded(llama, **prompts, **request), text), settings


def test_tuning_does_not_compute_on_the_default_device(llama: Any) -> None:
    selfspec.wrap(llama)
    torch.set_default_device("meta")
    try:
        profile = llama.speculation.tune([[5, 6, 7], [8, 9]], save=None, max_new_tokens=12)
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_device(None)
    assert profile.workload == "default"


def seeded(model: Any, **request: Any) -> Tensor:
    torch.default_generator.manual_seed(5)
    return model.generate(**request, max_new_tokens=10)
