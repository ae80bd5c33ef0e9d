"""Who processes are: the user of each, and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .accounts import LOGIN_VARIABLES, Account, Accounts
from .environment import BaseEnvironment, Environment
from .session import MARK_NAME
from .shortages import resource_error
from .spec import ProcessSpec, User

# One for each account that is in use.
_BASE_ENVIRONMENTS = 100
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Identities:
    """Gives each process its user and its environment.

    Args:
      default_user: of specs that name none; None for the supervisor's own.
      environment: what every environment starts from; None for this program's own.
      is_marked: whether members of a unit are to be known by their environment,
        for want of cgroups.
    """

    def __init__(
        self,
        default_user: str | User | None,
        environment: Mapping[str, str] | None,
        *,
        is_marked: bool,
    ) -> None:
        self._default_user = default_user
        self._is_marked = is_marked
        self._accounts = Accounts()
        # Not from the environment that is given: it tells of this very process.
        self._outer_mark = os.environ.get(MARK_NAME)
        variables = os.environ if environment is None else environment
        self._variables = {
            name: value for name, value in variables.items() if not name.startswith("CRECHE_")
        }
        self._variables.setdefault("PATH", _DEFAULT_PATH)
        # By what an account adds to it.
        self._bases: dict[tuple[tuple[str, str], ...] | None, BaseEnvironment] = {}

    def of(self, spec: ProcessSpec, mark: str) -> tuple[Account | None, Environment]:
        """Whom a process becomes (None: nobody else) and its whole environment.

        Args:
          spec: of the process.
          mark: of its unit.

        Raises:
          SpecError: there is no such user.
          LaunchError: that cannot be found out now.
        """
        user = self._default_user if spec.user is None else spec.user
        try:
            account = None if user is None else self._accounts.look_up(user)
        except OSError as error:
            raise resource_error(error) from error
        base = self._base(account)
        if account is not None and account.is_own:
            account = None
        additions = spec.env
        if self._is_marked:
            outer = "" if self._outer_mark is None else f"{self._outer_mark}/"
            additions = {**additions, MARK_NAME: outer + mark}
        return account, Environment(base, additions)

    def _base(self, account: Account | None) -> BaseEnvironment:
        key = None if account is None else tuple(account.environment.items())
        if (base := self._bases.get(key)) is None:
            if len(self._bases) >= _BASE_ENVIRONMENTS:
                self._bases.clear()
            variables = self._variables
            if account is not None:
                # Whoever has no account has no HOME; above all not ours.
                nobodys = {
                    name: value for name, value in variables.items() if name not in LOGIN_VARIABLES
                }
                variables = {**nobodys, **account.environment}
            base = self._bases[key] = BaseEnvironment(variables)
        return base
