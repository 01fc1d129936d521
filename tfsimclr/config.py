"""The settings of a run: one frozen dataclass from which the flags are generated."""

import dataclasses
import hashlib
import os

from absl import flags

from tfsimclr import defaults, options
from tfsimclr.label_options import LabelOptions
from tfsimclr.names import feature_names
from tfsimclr.network_options import NetworkOptions
from tfsimclr.training_options import TrainingOptions


@dataclasses.dataclass(frozen=True)
class Config(LabelOptions, TrainingOptions, NetworkOptions):
    """Every setting of a run; checked on construction.

    Raises:
        ValueError: If a value is outside its range or two settings contradict.
    """

    def __post_init__(self):
        options.check(self)
        allowed = feature_names(self.proj_layers)
        if self.feature not in allowed:
            raise ValueError(
                f"--feature must be one of {allowed} with --proj_layers="
                f"{self.proj_layers}, got {self.feature!r}."
            )
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup_epochs must be below --epochs={self.epochs}, got "
                f"{self.warmup_epochs}."
            )
        if self.dataset == "folder" and not self.data_dir:
            raise ValueError(
                "--dataset=folder needs --data_dir, the folder with your images."
            )

    def check_mode(self) -> None:
        """Raises a ValueError if a setting is missing in the mode, or means nothing."""
        layers = feature_names(self.proj_layers)[:-1]
        if self.mode == "finetune" and self.finetune_from not in (None, *layers):
            raise ValueError(
                f"--finetune_from must be one of {layers} with --proj_layers="
                f"{self.proj_layers}, got {self.finetune_from!r}."
            )
        if self.mode == "distill" and not self.teacher:
            raise ValueError(
                "--mode=distill needs --teacher, a run folder with a fine-tuned "
                "network (--mode=finetune)."
            )
        if self.teacher and self.mode != "distill":
            raise ValueError(
                f"--teacher belongs to --mode=distill, got --mode={self.mode}. A "
                "student is trained, scored and exported by that one mode."
            )
        if self.teacher and self.teacher == self.workdir:
            raise ValueError(
                f"--teacher and --workdir are both {self.workdir}. The student needs a "
                "--workdir of its own."
            )

    def with_optimizer_defaults(self) -> "Config":
        """Returns the config with the optimizer's defaults in place of None."""
        rule, epochs = self.learning_rate_scaling, self.epochs
        return self.replace_none(**defaults.of_optimizer(self.optimizer, rule, epochs))

    def replace_none(self, **values) -> "Config":
        """Returns the config with `values` for those of the settings that are None."""
        missing = {k: v for k, v in values.items() if getattr(self, k) is None}
        return dataclasses.replace(self, **missing)

    def lines(self) -> list[str]:
        """Returns the settings as lines of a flagfile."""
        values = dataclasses.asdict(self)
        return [f"--{k}={options.text(v)}" for k, v in values.items() if v is not None]

    def pretraining(self) -> dict[str, str]:
        """Returns the settings that a run folder is bound to, as text."""
        return {
            field.name: options.text(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata["pretraining"]
        }

    def default_workdir(self) -> str:
        """Returns runs/<method>-<dataset>-<hash of the settings>."""
        text = repr(sorted(self.pretraining().items()))
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return os.path.join("runs", f"{self.method}-{self.dataset}-{digest}")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for every field of `Config`."""
    options.define_flags(Config, values)


def from_flags(values: flags.FlagValues = flags.FLAGS) -> Config:
    """Returns the config that the parsed flags describe; paths become absolute."""
    given = {f.name: values[f.name].value for f in dataclasses.fields(Config)}
    for name in ("workdir", "data_dir", "cache_dir", "teacher"):
        if given[name] and "\0" not in given[name]:  # that is refused below
            given[name] = os.path.abspath(os.path.expanduser(given[name]))
    return Config(**given)
