"""From a search space to configs; pure."""

from mophpc.search.space import Config, make_configs, make_rows

__all__ = ["Config", "make_configs", "make_rows"]
