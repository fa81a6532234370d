"""The soft prompts of a trained run's users, read from its table (arXiv 2402.05133, section 4)."""

from __future__ import annotations

import hashlib
import weakref
from typing import Self

import numpy as np

from penname.errors import TrainedError
from penname.methods.prlhf.table import UserTable
from penname.train.folder import Trained


class SoftTable:
    """A run's table of soft prompts; rows are read each time, so what is adapted or erased counts at once.

    Args:
        kind: the form of the user model: "individual" or "cluster".
    """

    def __init__(self, kind: str, table: UserTable) -> None:
        self.kind = kind
        self.table = table
        weakref.finalize(self, table.close)

    @classmethod
    def open(cls, trained: Trained, width: int) -> Self | None:
        """The table of a run over a model whose embeddings are `width` wide; None for a run without users.

        Raises:
            TrainedError: it is missing, cut short, of another form, or made for another model.
        """
        kind = trained.settings.get("users")
        if kind == "none":
            return None
        if kind not in ("individual", "cluster"):
            raise TrainedError(f"{trained.path}: 'users' in penname.json is {kind!r}, which is no user model")
        table = UserTable.open(trained.path)
        try:
            _check(trained, table, kind, width)
        except BaseException:
            table.close()
            raise
        return cls(kind, table)

    def knows(self, user: str) -> bool:
        """Whether the user has a row."""
        return user in self.table

    def own(self, user: str | None) -> np.ndarray | None:
        """The user's row: o_u (T_u, width) or the logits w_u (K,); None where there is none."""
        return None if user is None else self.table.row(user)

    def rows(self, user: str | None) -> np.ndarray:
        """e_u, (T_u, width) float32; the generic user's for None and for whoever is unknown."""
        return self.soft(self.own(user))

    def soft(self, own: np.ndarray | None) -> np.ndarray:
        """The soft prompt that a row stands for.

        individual (equation 3): e_u = e_0 + o_u; cluster (equation 4): e_u = Σ_k softmax(w_u)_k V_k.
        """
        generic = self.table.shared["generic"]
        if self.kind == "individual":
            return generic if own is None else generic + own
        logits = generic if own is None else own
        shares = np.exp(logits - logits.max())
        clusters = self.table.shared["clusters"]
        return np.tensordot(shares / shares.sum(), clusters, axes=1).astype(np.float32)

    def key(self, user: str | None) -> str:
        """Changes with the user's soft prompt."""
        return hashlib.sha256(self.rows(user).tobytes()).hexdigest()


def _check(trained: Trained, table: UserTable, kind: str, width: int) -> None:
    """Refuse a table that is not of this form of user model, or whose rows are not as wide as the model's."""
    shapes = {name: array.shape for name, array in table.shared.items()}
    generic, clusters = shapes.get("generic", ()), shapes.get("clusters", ())
    soft = generic if kind == "individual" else clusters[1:]
    wanted = generic if kind == "individual" else clusters[:1]
    if len(soft) != 2 or table.row_shape != wanted or generic != wanted:
        held = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise TrainedError(
            f"{trained.path}: users.safetensors is no table of {kind} users: it has rows of shape "
            f"{table.row_shape} beside {held}"
        )
    if soft[-1] != width:
        raise TrainedError(
            f"{trained.path}: users.safetensors was made for another model: its soft prompts have {soft[-1]} "
            f"numbers a row, and this model's embeddings {width}"
        )
