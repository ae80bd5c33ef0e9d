"""What a process starts with besides its program, its user and its cgroup, encoded once for all that are alike."""

from __future__ import annotations

import resource

from .orders import Limit, encode_attributes
from .spec import Limits, ProcessSpec

# Combinations that are remembered; most processes have the same one.
_REMEMBERED = 100


class Attributes:
    """Priority, umask and limits of processes.

    Args:
      umask: of those whose spec has none, in octal; None to leave it as it is.
      oom_score_adj: the same.
      descriptor_limits: soft and hard limit of descriptors of those that have no
        limit of `open_files`; None to leave them as they are.
    """

    __slots__ = ("_descriptor_limits", "_encoded", "_oom_score_adj", "_umask")

    def __init__(
        self,
        umask: str | None,
        oom_score_adj: int | None,
        descriptor_limits: tuple[int, int] | None,
    ) -> None:
        self._umask = None if umask is None else int(umask, 8)
        self._oom_score_adj = oom_score_adj
        self._descriptor_limits = descriptor_limits
        self._encoded: dict[tuple[object, ...], bytes] = {}

    def encode(self, spec: ProcessSpec, limits: Limits) -> bytes:
        """The orders for them.

        Args:
          spec: whose attributes count before those of here.
          limits: of which those of setrlimit(2) are set.
        """
        key = (
            spec.umask,
            spec.nice,
            spec.oom_score_adj,
            limits.open_files,
            limits.core_bytes,
            limits.file_bytes,
        )
        if (encoded := self._encoded.get(key)) is None:
            if len(self._encoded) >= _REMEMBERED:
                self._encoded.clear()
            self._encoded[key] = encoded = self._encode(spec, limits)
        return encoded

    def _encode(self, spec: ProcessSpec, limits: Limits) -> bytes:
        umask = self._umask if spec.umask is None else int(spec.umask, 8)
        adjustment = self._oom_score_adj if spec.oom_score_adj is None else spec.oom_score_adj
        rlimits = [
            Limit(kind, value, value)
            for kind, value in (
                (resource.RLIMIT_NOFILE, limits.open_files),
                (resource.RLIMIT_CORE, limits.core_bytes),
                (resource.RLIMIT_FSIZE, limits.file_bytes),
            )
            if value is not None
        ]
        if limits.open_files is None and self._descriptor_limits is not None:
            rlimits.append(Limit(resource.RLIMIT_NOFILE, *self._descriptor_limits))
        return encode_attributes(
            oom_score_adj=adjustment,
            nice=spec.nice,
            umask=umask,
            limits=tuple(rlimits),
        )
