"""The tuner's result for one model, device, dtype and workload, as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from selfspec.drafting.stopping import StopRule
from selfspec.files import write_whole
from selfspec.round import Arm
from selfspec.tuning.cost_model import CostModel
from selfspec.tuning.identity import Identity
from selfspec.tuning.prediction import Limits, Prediction
from selfspec.tuning.replay import Setting

SCHEMA = 3


class ProfileError(ValueError):
    """A profile that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Profile:
    """Settings of one workload, and what was measured and predicted on the way to them.

    Raises:
        ValueError: a value that no tuning can have led to.
    """

    workload: str
    identity: Identity
    setting: Setting
    sampled: bool
    """Whether the workload samples; a profile without a call's kind of decoding is not taken unasked."""
    prediction: Prediction
    acceptance: Mapping[Arm, float]
    """Chance that a draft token stands, of every arm that was recorded: the prior of the controller."""
    tokens: Mapping[Arm, tuple[float, ...]]
    """Tokens per round and row by draft length, from 0, as they were replayed."""
    draft_bits: int | None
    """Of the low-bit view that was recorded and timed, None where there was none."""
    costs: CostModel
    context: float
    """Mean cached tokens of the workload: where costs are read off."""
    limits: Limits
    """What was asked for; calls under the profile keep to it."""
    column_bytes: int
    """Working memory of a round per row and verified token."""
    conditions: Mapping[str, Any]
    """Hardware, versions, threads; and the workload: prompts, tokens, batch, sampling arguments."""

    def __post_init__(self) -> None:
        if not isinstance(self.workload, str) or not self.workload.strip():
            raise ValueError(f"workload={self.workload!r}: a name is needed")
        if not isinstance(self.sampled, bool):
            raise ValueError(f"sampled={self.sampled!r}: allowed are True and False")
        self._check_arms()
        if self.setting.arm not in self.acceptance:
            raise ValueError(f"setting {self.setting}: acceptance is known of {_named(self.acceptance)}")
        known = len(self.tokens[self.setting.arm]) - 1
        if known < self.setting.draft_length:
            raise ValueError(f"draft_length={self.setting.draft_length}: tokens are known to {known}")
        widest = max(self.setting.candidates, *(len(row) - 1 for row in self.tokens.values()))
        if self.costs.most_columns < widest + 1:
            raise ValueError(f"costs: widths are known of fewer tokens than {widest + 1}")
        if self.setting.siblings > 1 and not self.costs.knows_siblings:
            raise ValueError(f"siblings={self.setting.siblings}: rounds with siblings were not timed")
        for name in ("context", "column_bytes"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r}: allowed is 0 and more")

    def _check_arms(self) -> None:
        n_layers, arms = self.costs.n_layers, list(self.acceptance)
        early = [arm.exit_layer for arm in arms if not arm.low_bit]
        viewed = [arm.exit_layer for arm in arms if arm.low_bit]
        if not early or not all(1 <= e < n_layers for e in early):
            raise ValueError(f"acceptance of exits {early}: at least one of 1 to {n_layers - 1}")
        if not all(1 <= e <= n_layers for e in viewed):
            raise ValueError(f"acceptance of exits {viewed} in low bits: allowed are 1 to {n_layers}")
        if self.draft_bits not in (None, 4, 8) or bool(viewed) != (self.draft_bits is not None):
            raise ValueError(f"draft_bits={self.draft_bits!r}: 4 or 8 where a view was recorded, else None")
        if viewed and not self.costs.knows_view:
            raise ValueError("costs: rounds by the low-bit view were not timed")
        if not all(_is_number(chance) and 0 <= chance <= 1 for chance in self.acceptance.values()):
            raise ValueError(f"acceptance={list(self.acceptance.values())}: chances are 0 to 1")
        rows = self.tokens.values()
        if set(self.tokens) != set(arms) or not all(len(row) > 1 for row in rows):
            raise ValueError("tokens: every arm of acceptance needs those of one draft length at least")
        if not all(1 <= value <= k + 1 for row in rows for k, value in enumerate(row)):
            raise ValueError("tokens: a round of K drafts commits 1 to K + 1")

    def check(self, identity: Identity) -> None:
        """Refuse a model, device or dtype that this profile was not made for.

        Timing alone again would save a quarter of tuning at most, and its stop rule and interval need the
        recording, which is not kept: the remedy is to tune again, in the user's own time.

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
        found: dict[str, Any] = {"schema": SCHEMA}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("acceptance", "tokens"):
                value = {f"{arm.kind} {arm.exit_layer}": of_arm for arm, of_arm in value.items()}
            whole = is_dataclass(value) and not isinstance(value, type)
            found[each.name] = asdict(value) if whole else value
        return found

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
        except (ValueError, RecursionError) as error:  # no JSON, or nested too deeply
            raise ProfileError(f"profile {path} is damaged or cut off ({error}): tune again") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int):
            raise ProfileError(f"{path} is not a profile: it has no schema number")
        if schema != SCHEMA:
            remedy = "tune again" if schema < SCHEMA else "update selfspec, or tune again"
            raise ProfileError(f"profile {path} has schema {schema}, this version reads {SCHEMA}: {remedy}")
        try:
            return cls.from_dict(data)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
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
            prediction=Prediction.from_dict(data["prediction"]),
            acceptance={_arm(name): chance for name, chance in data["acceptance"].items()},
            tokens={_arm(name): tuple(row) for name, row in data["tokens"].items()},
            draft_bits=data["draft_bits"],
            costs=CostModel.from_dict(data["costs"]),
            context=data["context"],
            limits=Limits(**data["limits"]),
            column_bytes=data["column_bytes"],
            conditions=dict(data["conditions"]),
        )

    def __str__(self) -> str:
        low, high = self.prediction.speedup_interval
        return (
            f"{self.workload}: {self.setting}, "
            f"predicted {self.prediction.speedup:.2f}x AR ({low:.2f}-{high:.2f})"
        )


def _arm(name: str) -> Arm:
    """The inverse of its name in a file: "early_exit 3", "low_bit 16"."""
    kind, exit_layer = name.split()
    arm = Arm(int(exit_layer), low_bit=kind == "low_bit")
    if arm.kind != kind:
        raise ValueError(f"{name!r}: allowed are 'early_exit' or 'low_bit' and an exit layer")
    return arm


def _named(arms: Mapping[Arm, Any]) -> str:
    return ", ".join(f"{arm.kind} {arm.exit_layer}" for arm in sorted(arms))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
