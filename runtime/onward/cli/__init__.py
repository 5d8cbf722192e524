"""The `onward` command: train, evaluate, predict, export, verify, inspect, serve, client."""

from onward.cli.app import main

__all__ = ["main"]
