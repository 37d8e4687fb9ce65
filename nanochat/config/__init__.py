"""A run's configuration: `Config`, its fields in groups, and what a profile and the command line's flags make of it."""

from nanochat.config.config import FIELDS, GROUPS, RL_FIELDS, Config, differences
from nanochat.config.flags import UnknownOption, convert, flag_name, metavar, parse_flags, shown, unknown_key
from nanochat.config.groups import (
    EMBEDDED,
    TRACKERS,
    CheckpointConfig,
    DataConfig,
    DeviceConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RLConfig,
    RunConfig,
    ScheduleConfig,
    SFTConfig,
)
from nanochat.config.profiles import PROFILE_NAMES, PROFILES, TEXT_RULES, build_config, load_profile, profile_name

__all__ = [
    "EMBEDDED",
    "FIELDS",
    "GROUPS",
    "PROFILES",
    "PROFILE_NAMES",
    "RL_FIELDS",
    "TEXT_RULES",
    "TRACKERS",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DeviceConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "RLConfig",
    "RunConfig",
    "SFTConfig",
    "ScheduleConfig",
    "UnknownOption",
    "build_config",
    "convert",
    "differences",
    "flag_name",
    "load_profile",
    "metavar",
    "parse_flags",
    "profile_name",
    "shown",
    "unknown_key",
]
