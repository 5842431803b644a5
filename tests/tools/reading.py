"""A configuration from a command line, as the commands read it."""

from rfdetr.training.config import RunConfig
from rfdetr.training.parsing import make_config, make_parser, parse


def read(*argv: str) -> RunConfig:
    parser = make_parser(RunConfig, "test")
    return make_config(RunConfig, parser, parse(RunConfig, parser, argv))
