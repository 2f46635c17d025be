"""Where profiles are kept: the platform's user cache directory, in a folder per model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import platformdirs

from selfspec.tuning.profile import Identity, Profile, ProfileError, fingerprint

Source: TypeAlias = str | Path | Profile
"""A profile, or the file that holds one."""


def profiles_folder() -> Path:
    """The folder of all profiles of this user; it need not exist yet."""
    return Path(platformdirs.user_cache_dir("selfspec")) / "profiles"


def default_path(profile: Profile) -> Path:
    """Where `wrap` finds this profile by itself."""
    identity = profile.identity
    name = "-".join((identity.device.partition(":")[0], identity.dtype, profile.workload))
    return profiles_folder() / identity.fingerprint / (re.sub(r"[^\w.-]+", "_", name) + ".json")


def load_profiles(sources: Source | Iterable[Source], model: Any) -> dict[str, Profile]:
    """The profiles that the user named, by workload, each checked against the model.

    Raises:
        ProfileError: one that cannot be read, or is for another model, device or dtype; two of one workload.
    """
    given = [sources] if isinstance(sources, (str, Path, Profile)) else list(sources)
    found: dict[str, Profile] = {}
    identity = Identity.of(model) if given else None
    for source in given:
        profile = source if isinstance(source, Profile) else Profile.load(source)
        if identity is not None:
            profile.check(identity)
        if profile.workload in found:
            raise ProfileError(f"two profiles for workload {profile.workload!r}: give each its own name")
        found[profile.workload] = profile
    return found


def kept_profiles(model: Any) -> dict[str, Profile]:
    """The profiles kept for this model, device and dtype, newest last; none is no error.

    One that cannot be read is left out with a warning: it was not asked for, and generation works without it.
    """
    folder = profiles_folder()
    if not folder.is_dir():
        return {}
    folder = folder / fingerprint(model)
    found: dict[str, Profile] = {}
    if not folder.is_dir():
        return found
    identity = Identity.of(model)
    for path in sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime):
        try:
            profile = Profile.load(path)
        except ProfileError as error:
            warnings.warn(f"{error} (left out)", stacklevel=3)
            continue
        if not identity.differences(profile.identity):
            found[profile.workload] = profile
    return found
