"""Prompts and options with which tuning a tiny model takes part of a second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tiny_models import random_prompts

from selfspec.tuning.cost_model import Fit
from selfspec.tuning.profile import Profile
from selfspec.tuning.replay import Setting

PROMPTS = [[5, 6, 7], [9, 8], [1, 2, 3, 4], [40, 41]]
QUICK: dict[str, Any] = {"max_new_tokens": 16, "repeats": 1, "longest": 4, "siblings": False}
REQUEST: dict[str, Any] = {**random_prompts(5), "max_new_tokens": 12, "pad_token_id": 0}


def where_drafts_pay(profile: Profile, setting: Setting) -> Profile:
    """`profile` with another setting, on a machine where a draft step costs a hundredth of a round."""
    step = (0.0, 1e-4, 0.0, 0.0, 0.0)
    fit = Fit(profile.costs.fits[0].rows, step, (1e-2, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0), view=step)
    costs = replace(profile.costs, fits=(fit,), widths=profile.costs.widths[:1])
    return replace(profile, setting=setting, costs=costs)
