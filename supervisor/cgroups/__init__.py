"""Control groups: a fresh one for every unit, with limits, counters and a sure end."""

from .events import CgroupEvents
from .leaf import CgroupLimits, Leaf
from .stock import FreshLeaf, LeafStock
from .tree import CgroupTree, NoCgroups
from .unit import CgroupUnit

__all__ = [
    "CgroupEvents",
    "CgroupLimits",
    "CgroupTree",
    "CgroupUnit",
    "FreshLeaf",
    "Leaf",
    "LeafStock",
    "NoCgroups",
]
