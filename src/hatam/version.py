"""The version, in a module that needs nothing, so that building the package does not import torch."""

__version__ = "0.1.0"
