"""Control groups: a fresh one for every unit, with limits, counters and a sure end."""

from .events import CgroupEvents
from .leaf import CgroupLimits, Leaf
from .tree import CgroupTree, NoCgroups, units_name
from .unit import CgroupUnit

__all__ = [
    "CgroupEvents",
    "CgroupLimits",
    "CgroupTree",
    "CgroupUnit",
    "Leaf",
    "NoCgroups",
    "units_name",
]
