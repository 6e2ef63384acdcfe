"""Several processes that train one network: how they join, agree, and stop together."""

from conadv.trainer.distributed.world import World, join

__all__ = ["World", "join"]
