"""The command line in this process: starting TensorFlow anew takes seconds."""

from absl import flags

from tfsimclr import resolve, run
from tfsimclr.settings import config as configs
from tfsimclr.settings import flagfiles


def parse(*arguments):
    """Returns the config of a command line and what `run.run` takes besides it."""
    argv = ["program", *map(str, arguments)]
    values = flags.FlagValues()
    configs.define_flags(values)
    values.set_gnu_getopt(True)
    assert values(flagfiles.expand(argv)) == ["program"]
    return configs.from_flags(values), flagfiles.names_given(argv)


def config_of(*arguments):
    """Returns the config of a command line, flagfiles expanded."""
    return parse(*arguments)[0]


def check(*arguments):
    """Returns the config of a command line after the checks that need no data."""
    config, names = parse(*arguments)
    resolve.check(config, *names)
    return config


def command(*arguments):
    """Runs a command line."""
    config, names = parse(*arguments)
    run.run(config, *names)
