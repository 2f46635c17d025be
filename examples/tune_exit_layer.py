"""Choose the exit layer and draft length for your own prompts: python examples/tune_exit_layer.py"""

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import layer_skip
import selfspec

PROMPTS = Path(__file__).parent.parent / "benchmarks" / "prompts" / "code.jsonl"

tokenizer = AutoTokenizer.from_pretrained(layer_skip.REFERENCE_MODEL)
model = AutoModelForCausalLM.from_pretrained(layer_skip.REFERENCE_MODEL, dtype="bfloat16")
prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()[:8]]

model = selfspec.wrap(model)
profile = model.speculation.tune(prompts, workload="code", tokenizer=tokenizer, max_new_tokens=48)
print(profile)

inputs = tokenizer("def read_lines(path):\n", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64, do_sample=False, workload="code")
print(tokenizer.decode(output[0]))
print(model.speculation.stats)
