"""The tuner's result for one model, device, dtype and workload, as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from selfspec.drafting.stopping import StopRule
from selfspec.files import write_whole
from selfspec.tuning.cost_model import CostModel
from selfspec.tuning.identity import Identity
from selfspec.tuning.prediction import Limits, Prediction
from selfspec.tuning.replay import Setting

SCHEMA = 2


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
    acceptance: Mapping[int, float]
    """Exit layer -> chance that a draft token stands: the prior of the controller."""
    tokens: Mapping[int, tuple[float, ...]]
    """Exit layer -> tokens per round and row by draft length, from 0, as they were replayed."""
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
        exits = sorted(self.acceptance)
        if not exits or not all(1 <= e < self.costs.n_layers for e in exits):
            raise ValueError(f"acceptance of exits {exits}: at least one of 1 to {self.costs.n_layers - 1}")
        if not all(_is_number(chance) and 0 <= chance <= 1 for chance in self.acceptance.values()):
            raise ValueError(f"acceptance={dict(self.acceptance)}: chances are 0 to 1")
        if self.setting.exit_layer not in self.acceptance:
            raise ValueError(f"exit_layer={self.setting.exit_layer}: acceptance is known of {exits}")
        if self.setting.siblings != 1:
            raise ValueError(f"siblings={self.setting.siblings}: calls under a profile draft chains")
        if sorted(self.tokens) != exits or len({len(row) for row in self.tokens.values()}) != 1:
            raise ValueError("tokens: every exit of acceptance needs as many draft lengths")
        if not all(1 <= value <= k + 1 for row in self.tokens.values() for k, value in enumerate(row)):
            raise ValueError("tokens: a round of K drafts commits 1 to K + 1")
        if self.longest < self.setting.draft_length:
            raise ValueError(f"draft_length={self.setting.draft_length}: tokens are known to {self.longest}")
        if min(len(table) for _, table in self.costs.widths) < self.longest + 2:
            raise ValueError(f"costs: widths are known of fewer tokens than {self.longest + 1}")
        if not _is_number(self.context) or not 0 <= self.context < float("inf"):
            raise ValueError(f"context={self.context!r}: allowed is 0 and more")

    @property
    def longest(self) -> int:
        """Longest draft that was replayed."""
        return len(next(iter(self.tokens.values()))) - 1

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
        by_exit = {
            name: {str(e): value for e, value in getattr(self, name).items()}
            for name in ("acceptance", "tokens")
        }
        return {"schema": SCHEMA, **asdict(self), **by_exit}

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
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
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
            acceptance={int(e): chance for e, chance in data["acceptance"].items()},
            tokens={int(e): tuple(row) for e, row in data["tokens"].items()},
            costs=CostModel.from_dict(data["costs"]),
            context=data["context"],
            limits=Limits(**data["limits"]),
            column_bytes=int(data["column_bytes"]),
            conditions=dict(data["conditions"]),
        )

    def __str__(self) -> str:
        low, high = self.prediction.speedup_interval
        return (
            f"{self.workload}: {self.setting}, "
            f"predicted {self.prediction.speedup:.2f}x AR ({low:.2f}-{high:.2f})"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
