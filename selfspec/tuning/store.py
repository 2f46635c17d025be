"""Where profiles are kept, and which one a call follows.

They lie in the platform's user cache directory, in a folder per model.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import platformdirs

from selfspec.config import SpeculationConfig
from selfspec.tuning.identity import Identity, fingerprint
from selfspec.tuning.profile import Profile, ProfileError

Source: TypeAlias = str | Path | Profile
"""A profile, or the file that holds one."""

_log = logging.getLogger("selfspec")


def profiles_folder() -> Path:
    """The folder of all profiles of this user; it need not exist yet."""
    return Path(platformdirs.user_cache_dir("selfspec")) / "profiles"


def default_path(identity: Identity, workload: str) -> Path:
    """Where `wrap` finds the profile of a workload by itself."""
    name = f"{identity.device.partition(':')[0]}-{identity.dtype}-{file_name(workload)}"
    return profiles_folder() / identity.fingerprint / name


def file_name(workload: str) -> str:
    """A file's name for a workload: one for each, in the folder that it is put in."""
    plain = re.sub(r"[^\w-]+", "_", workload)
    if plain != workload:  # "a b" and "a_b" are two workloads
        plain += "-" + hashlib.blake2b(workload.encode(), digest_size=3).hexdigest()
    return plain + ".json"


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
    So is one of other hardware of this kind, which is said: it lies where this machine's would.
    """
    found: dict[str, Profile] = {}
    identity: Identity | None = None
    for profile in _kept(model):
        identity = identity or Identity.of(model)
        differences = identity.differences(profile.identity)
        if not differences:
            found[profile.workload] = profile
        elif default_path(identity, profile.workload) == default_path(profile.identity, profile.workload):
            _log.warning(
                "the profile kept of workload %r is not used: %s. Tune again for this machine",
                profile.workload,
                "; ".join(differences),
            )
    return found


def fitting(profiles: Mapping[str, Profile], model: Any) -> dict[str, Profile]:
    """Those that still fit a model that has changed; the others are left out with a warning."""
    if not profiles:
        return {}
    identity, found = Identity.of(model), {}
    for workload, profile in profiles.items():
        differences = identity.differences(profile.identity)
        if differences:
            warnings.warn(
                f"the profile of workload {workload!r} is not used any more: {'; '.join(differences)}. "
                "Tune again",
                stacklevel=5,
            )
        else:
            found[workload] = profile
    return found


def profile_of_call(
    profiles: Mapping[str, Profile],
    config: SpeculationConfig,
    model: Any,
    sampled: bool,
    workload: str | None,
) -> tuple[Profile | None, str]:
    """The profile that a call follows, and what to say of it.

    The one asked for by name; or where profiles were given, or with drafts by early exit, the newest of the
    call's kind of decoding. Else draft="auto" goes on measuring: where text repeats, what it copies costs
    nothing, and profiles know nothing of that.

    Raises:
        ProfileError: there is none of that name, or the settings leave no choice to it.
    """
    if workload is not None:
        if config.against_profiles:
            raise ProfileError(
                f"workload={workload!r} cannot be used with {config.against_profiles}: its profile chooses "
                "exit layer, draft length, tree and where to stop, for draft='auto' or 'early_exit'"
            )
        return _named(profiles, workload, model), f"{workload!r}, named by the call"
    unasked = config.names_profiles or config.kind == "early_exit"
    if not unasked or config.against_profiles or not profiles:
        return None, ""
    alike = [profile for profile in profiles.values() if profile.sampled == sampled]
    if alike:
        return alike[-1], f"{alike[-1].workload!r}, the newest for calls of this kind"
    own, theirs = ("sampled", "greedy") if sampled else ("greedy", "sampled")
    return None, (
        f"none: {', '.join(map(repr, profiles))} were tuned for {theirs} calls and this one is {own}; "
        "name one with workload="
    )


def _named(profiles: Mapping[str, Profile], workload: str, model: Any) -> Profile:
    if not isinstance(workload, str):
        raise ProfileError(f"workload={workload!r}: allowed is the name of a profile, a text")
    if workload in profiles:
        return profiles[workload]
    for profile in _kept(model):
        differences = Identity.of(model).differences(profile.identity)
        if profile.workload == workload and differences:
            raise ProfileError(f"the profile kept of workload {workload!r} does not fit: {differences[0]}")
    near = difflib.get_close_matches(workload, profiles, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = f"known are {', '.join(sorted(profiles))}" if profiles else "no profile is loaded: tune one first"
    raise ProfileError(f"unknown workload {workload!r}: {hint}{known}")


def _kept(model: Any) -> Iterator[Profile]:
    """All profiles in the folder of this model's weights, oldest first."""
    try:
        if not profiles_folder().is_dir():
            return
        folder = profiles_folder() / fingerprint(model)
        paths = sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime) if folder.is_dir() else []
    except OSError:  # before Python 3.14 is_dir() raises where a folder above may not be read
        return
    for path in paths:
        try:
            yield Profile.load(path)
        except ProfileError as error:
            warnings.warn(f"{error} (left out)", stacklevel=4)
