"""The plain twin belongs to the benchmarks: small, with its licence, and not in the package."""

import json
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
TWIN = PROJECT / "benchmarks" / "plain_twin"


def test_the_twin_is_small_and_stays_out_of_the_wheel() -> None:
    assert sum(path.stat().st_size for path in TWIN.iterdir()) < 16_000_000
    build = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert not any(place.startswith("benchmarks") for place in build["packages"])
    assert list(build["force-include"]) == ["benchmarks/prompts/code.jsonl"]


def test_the_twin_has_the_reference_models_shape() -> None:
    folders = TWIN, PROJECT / "layer_skip" / "reference_model"
    twin, reference = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert twin == reference
