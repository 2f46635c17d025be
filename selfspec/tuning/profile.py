"""The tuner's result for one model, device, dtype and workload, as a JSON file."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from selfspec.benchmarking.environment import conditions
from selfspec.config import SpeculationConfig
from selfspec.drafting.stopping import StopRule
from selfspec.files import write_whole
from selfspec.tuning.replay import Setting
from selfspec.tuning.round_costs import CostModel

SCHEMA = 1
_SAMPLES = 8
"""Weights per tensor that the fingerprint looks at."""


class ProfileError(ValueError):
    """A profile that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Identity:
    """What a profile was tuned for; costs and acceptance hold for nothing else."""

    fingerprint: str
    device: str
    """Type and name of the hardware."""
    dtype: str

    @classmethod
    def of(cls, model: Any) -> Identity:
        """Of a model as it is now."""
        found = conditions(model)
        return cls(fingerprint(model), f"{found['device']}: {found['hardware']}", found["dtype"])

    def differences(self, other: Identity) -> list[str]:
        """Which fields differ, in words: mine, then the other's."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} is {mine[name]!r}, not {theirs[name]!r}" for name in mine if mine[name] != theirs[name]
        ]


@dataclass(frozen=True)
class Profile:
    """Settings of one workload, and what was measured and predicted on the way to them."""

    workload: str
    identity: Identity
    setting: Setting
    sampled: bool
    """Whether the workload samples; a profile without a call's kind of decoding is not taken unasked."""
    prediction: Mapping[str, Any]
    """tokens_per_second with interval, speedup over AR with interval, acceptance, plain_tokens_per_second."""
    acceptance: Mapping[int, float]
    """Exit layer -> chance that a draft token stands: the prior of the controller."""
    costs: CostModel
    context: float
    """Mean cached tokens of the workload: where costs are read off."""
    conditions: Mapping[str, Any]
    """Hardware, versions, threads; and the workload: prompts, tokens, batch, sampling arguments."""

    def check(self, identity: Identity) -> None:
        """Refuse a model, device or dtype that this profile was not made for.

        Raises:
            ProfileError: it names every field that differs.
        """
        found = identity.differences(self.identity)
        if found:
            raise ProfileError(
                f"profile {self.workload!r} does not fit: {'; '.join(found)}. "
                f"Tune again: model.speculation.tune(prompts, workload={self.workload!r})"
            )

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        path = Path(path)
        write_whole(path, json.dumps(self.as_dict(), indent=1) + "\n")
        return path

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "acceptance": {str(e): chance for e, chance in self.acceptance.items()},
        }

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises:
            ProfileError: the file is not there, damaged, cut off, or of another version of the format.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ProfileError(f"cannot read profile {path}: {reason}") from error
        except json.JSONDecodeError as error:
            raise ProfileError(f"profile {path} is damaged or cut off ({error}): tune again") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int):
            raise ProfileError(f"{path} is not a profile: it has no schema number")
        if schema != SCHEMA:
            remedy = "tune again" if schema < SCHEMA else "update selfspec, or tune again"
            raise ProfileError(f"profile {path} has schema {schema}, this version reads {SCHEMA}: {remedy}")
        try:
            return cls.from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ProfileError(f"profile {path} is damaged ({reason}): tune again") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """The inverse of `as_dict`."""
        setting = dict(data["setting"])
        if setting["stop"] is not None:
            rule = setting["stop"]
            chances = tuple(tuple(row) for row in rule["chances"])
            setting["stop"] = StopRule(tuple(rule["thresholds"]), chances)
        return cls(
            workload=data["workload"],
            identity=Identity(**data["identity"]),
            setting=Setting(**setting),
            sampled=data["sampled"],
            prediction=data["prediction"],
            acceptance={int(e): float(chance) for e, chance in data["acceptance"].items()},
            costs=CostModel.from_dict(data["costs"]),
            context=float(data["context"]),
            conditions=data["conditions"],
        )

    def __str__(self) -> str:
        low, high = self.prediction["speedup_interval"]
        return (
            f"{self.workload}: exit layer {self.setting.exit_layer}, "
            f"draft length {self.setting.draft_length}, "
            f"predicted {self.prediction['speedup']:.2f}x AR ({low:.2f}-{high:.2f})"
        )


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """A short hash of a model's shape and of a few weights of every tensor, the same in every dtype.

    Two fine-tunes of one model differ; the same weights in bf16 and fp32 do not (dtype is its own field).
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"{model.config.model_type} {model.config.vocab_size}".encode())
    samples = []
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, _SAMPLES, device=flat.device).long()
        samples.append(flat[places].to(torch.bfloat16))
    if samples:
        digest.update(torch.cat([s.cpu() for s in samples]).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def profile_of_call(
    profiles: Mapping[str, Profile], config: SpeculationConfig, sampled: bool, workload: str | None
) -> Profile | None:
    """The profile asked for; or with drafts by early exit the newest of the call's kind of decoding.

    Raises:
        ProfileError: there is none of that name, or the settings leave no choice to it.
    """
    if workload is not None:
        if config.against_profiles:
            raise ProfileError(
                f"workload={workload!r} cannot be used with {config.against_profiles}: its profile chooses "
                "exit layer, draft length and where to stop, for draft='auto' or 'early_exit'"
            )
        return named(profiles, workload)
    if config.kind != "early_exit" or config.against_profiles:
        return None
    alike = [profile for profile in profiles.values() if profile.sampled == sampled]
    return alike[-1] if alike else None


def named(profiles: Mapping[str, Profile], workload: str) -> Profile:
    """The profile of a workload.

    Raises:
        ProfileError: there is none of that name; the message says which there are.
    """
    if workload in profiles:
        return profiles[workload]
    near = difflib.get_close_matches(workload, profiles, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = f"known are {', '.join(sorted(profiles))}" if profiles else "no profile is loaded: tune one first"
    raise ProfileError(f"unknown workload {workload!r}: {hint}{known}")
