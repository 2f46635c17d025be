"""selfspec: self-speculative early exit. One line makes an existing Hugging Face model generate faster.

model = selfspec.wrap(model)
model.generate(**inputs, max_new_tokens=256)
"""

from layer_skip.families import UnsupportedModelError
from selfspec.config import ConfigError, SpeculationConfig
from selfspec.fallback import NotSpeculatedError
from selfspec.processing import rowwise
from selfspec.rows import RoundEvent
from selfspec.stats import Stats
from selfspec.tuning.profile import Profile, ProfileError
from selfspec.wrapping import generate, is_wrapped, unwrap, wrap

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "NotSpeculatedError",
    "Profile",
    "ProfileError",
    "RoundEvent",
    "SpeculationConfig",
    "Stats",
    "UnsupportedModelError",
    "generate",
    "is_wrapped",
    "rowwise",
    "unwrap",
    "wrap",
]
