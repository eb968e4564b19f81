"""CONFIG and key=value, as every verb that reads a config takes them."""

from __future__ import annotations

import argparse


def add_config_arguments(parser: argparse.ArgumentParser, *, examples: str = "configs/data/") -> None:
    """`examples` is the folder that holds configs of the wanted kind."""
    parser.add_argument("config", metavar="CONFIG", help=f"a YAML file, as in {examples}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that replace the file's")
