"""The leading eigenvectors of a covariance that is only ever applied: block Krylov, restarted.

A basis Q of orthonormal rows grows by blocks: each new block is the covariance applied to the one
before, less its part in Q (Golub & Underwood 1977; Musco & Musco 2015 for its accuracy without gaps
between eigenvalues).  The best vectors within Q (Rayleigh & Ritz) come from H = Q·C·Qᵀ, which is
known from the same products.  When Q is as large as memory allows, it is replaced by its best k
vectors, to which the next block is added (Wu & Simon 2000).

**Accuracy.**  The variance that k vectors capture grows with every block, toward that of the true
ones.  Its gains fall about geometrically: after a gain g, r times the one before, what is missing
is taken to be g·r/(1 - r).  It ends when that is below `tolerance` of what is captured.
Products are in float32 with sums of a block in float32 too: relative errors of the variances are
about 1e-5; the basis is orthogonalised twice, with inner products of a block in float64, to 1e-6.

**Cost.**  For m vectors in Q: 4·N·D·m operations for the products and 8·D·m² to orthogonalise, and
one read of the data for each block.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorasynth.codec.plan import MOST_BLOCKS
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.device import exact, exact_device

#: Applies the covariance (times a constant) to rows; the text names the pass.
Apply = Callable[[Float32[Tensor, "l D"], str], Float32[Tensor, "l D"]]

#: What remains of a block is noise of rounding below this share of the largest eigenvalue.
_NOISE = 1e-6

#: Columns that are rotated at a time.
_COLUMNS = 4096

#: Vectors in one file of a basis that was restarted.
_PIECE = 256

#: Gains that are looked at.
_GAINS = 4


@dataclass(frozen=True)
class Leading:
    """The k leading eigenvectors found, and how well."""

    #: Orthonormal rows, by falling eigenvalue.
    vectors: Float32[Tensor, "k D"]
    values: Float64[Tensor, " k"]
    #: Share of the captured variance that is estimated to be missing.
    missing: float
    #: Applications of the covariance.
    blocks: int


@dataclass
class _Iteration:
    """Everything that changes; all of it is in the checkpoint."""

    basis: Float32[Tensor, "capacity D"]
    projected: Float64[Tensor, "capacity capacity"]
    #: Rows of the basis in use, and how many of them are the newest block.
    used: int = 0
    newest: int = 0
    blocks: int = 0
    restarts: int = 0
    #: Captured variance after each block since there are k vectors.
    captured: list[float] = field(default_factory=list)
    #: Rows at which the blocks of the checkpoint begin.
    saved: list[int] = field(default_factory=list)

    @property
    def rows(self) -> Float32[Tensor, "m D"]:
        return self.basis[: self.used]

    @property
    def known(self) -> Float64[Tensor, "m m"]:
        return self.projected[: self.used, : self.used]


def leading_eigenvectors(
    apply: Apply,
    start: Float32[Tensor, "l D"],
    k: int,
    capacity: int,
    tolerance: float,
    checkpoint: Checkpoint,
) -> Leading:
    """The k leading eigenvectors of what `apply` applies.

    Args:
        apply: a symmetric positive semi-definite matrix.
        start: rows that the first block spans, best such with large parts in the wanted vectors.
        k: how many; fewer are returned where the matrix has a lower rank.
        capacity: rows of the basis that memory allows, at least k + l.
        tolerance: share of the captured variance that may be missing.
        checkpoint: where the basis is kept, block by block.
    """
    run = _begin(start, capacity, checkpoint)
    while True:
        image = apply(run.basis[run.used - run.newest : run.used], f"block {run.blocks + 1}")
        run.blocks += 1
        fresh = _extend(run, image)
        missing = float("inf")
        if run.used >= k:
            missing = _judge(run, k)
        if len(fresh) == 0:  # the basis holds all that there is
            missing = 0.0
        if missing <= tolerance or run.blocks >= MOST_BLOCKS:
            break
        if run.used + len(fresh) > capacity:
            values, turns = _ritz(run, k)
            _restart(run, values, turns, checkpoint)
        _append(run, fresh)
        _save(run, checkpoint)
    values, turns = _ritz(run, k)
    _rotate(run.basis, run.used, turns)
    return Leading(run.basis[: len(values)], values, missing, run.blocks)


def _begin(start: Float32[Tensor, "l D"], capacity: int, checkpoint: Checkpoint) -> _Iteration:
    run = _Iteration(
        start.new_empty(capacity, start.shape[1]),
        start.new_zeros(capacity, capacity, dtype=torch.float64),
    )
    state = checkpoint.load("krylov", start.device)
    if state is None:
        _append(run, orthonormalise(orthonormalise(start)))
        _save(run, checkpoint)
        return run
    for name, value in state.facts.items():
        setattr(run, name, value)
    _read_basis(run, checkpoint)
    known = state.tensors["projected"]
    run.projected[: len(known), : len(known)] = known
    return run


def _append(run: _Iteration, rows: Float32[Tensor, "l D"]) -> None:
    run.basis[run.used : run.used + len(rows)] = rows
    run.used, run.newest = run.used + len(rows), len(rows)


def _save(run: _Iteration, checkpoint: Checkpoint) -> None:
    """Write the newest block, then the state that names it, then delete what it made useless."""
    first = run.used - run.newest
    checkpoint.save(f"basis-{run.restarts}-{first}", {"rows": run.basis[first : run.used]})
    run.saved.append(first)
    facts = {
        name: getattr(run, name)
        for name in ("used", "newest", "blocks", "restarts", "captured", "saved")
    }
    checkpoint.save("krylov", {"projected": run.known}, **facts)
    checkpoint.forget(f"basis-{run.restarts - 1}-*")


def _extend(run: _Iteration, image: Float32[Tensor, "l D"]) -> Float32[Tensor, "m D"]:
    """Enter the newest block's image into H; what is new of it, orthonormal, in its memory."""
    first = run.used - run.newest
    inner = (run.rows @ image.T).double()
    run.projected[: run.used, first : run.used] = inner
    run.projected[first : run.used, : run.used] = inner.T
    corner = inner[first:]
    run.projected[first : run.used, first : run.used] = (corner + corner.T) / 2
    noise = _NOISE * float(run.known.diagonal().max())
    image.addmm_(inner.T.float(), run.rows, alpha=-1)
    image = orthonormalise(image, noise)
    image.addmm_((run.rows @ image.T).T, run.rows, alpha=-1)
    return orthonormalise(image)


def _judge(run: _Iteration, k: int) -> float:
    """The share of the captured variance that is estimated to be missing."""
    run.captured.append(float(torch.linalg.eigvalsh(run.known)[-k:].sum()))
    if len(run.captured) < 3:
        return float("inf")
    gains = [after - before for before, after in pairwise(run.captured[-_GAINS - 1 :])]
    last = gains[-1]
    if last <= 1e-7 * run.captured[-1]:  # rounding
        return max(last, 0.0) / run.captured[-1]
    # After a restart gains fall more slowly again, so then the slowest of late falls counts.
    falls = [after / before for before, after in pairwise(gains)]
    rate = max(falls) if run.restarts else falls[-1]
    return last * rate / (1 - rate) / run.captured[-1] if rate < 1 else float("inf")


def _ritz(run: _Iteration, k: int) -> tuple[Float64[Tensor, " k"], Float32[Tensor, "k m"]]:
    values, vectors = torch.linalg.eigh(run.known)
    count = min(k, len(values))
    return values[-count:].flip(0), vectors[:, -count:].flip(1).T.float()


def _restart(
    run: _Iteration,
    values: Float64[Tensor, " k"],
    turns: Float32[Tensor, "k m"],
    checkpoint: Checkpoint,
) -> None:
    """Replace the basis by the best vectors in it."""
    _rotate(run.basis, run.used, turns)
    run.projected.zero_()
    run.projected[: len(values), : len(values)] = values.diag()
    run.used, run.newest, run.restarts, run.saved = len(values), 0, run.restarts + 1, []
    for first in range(0, run.used, _PIECE):
        piece = run.rows[first : first + _PIECE]
        checkpoint.save(f"basis-{run.restarts}-{first}", {"rows": piece})
        run.saved.append(first)


def _read_basis(run: _Iteration, checkpoint: Checkpoint) -> None:
    for row in run.saved:
        part = checkpoint.load(f"basis-{run.restarts}-{row}", run.basis.device)
        assert part is not None, "blocks are written before the state that names them"
        run.basis[row : row + len(part.tensors["rows"])] = part.tensors["rows"]


def _rotate(basis: Float32[Tensor, "capacity D"], used: int, turns: Float32[Tensor, "k m"]) -> None:
    """Put turns @ basis in place of the first k rows, without a second basis."""
    for part in basis.split(_COLUMNS, dim=1):
        part[: len(turns)] = turns @ part[:used]


def orthonormalise(rows: Float32[Tensor, "l D"], noise: float = 0.0) -> Float32[Tensor, "m D"]:
    """An orthonormal basis of the rows' span, in their memory.

    Directions whose length is at most `noise` are left out.
    """
    if len(rows) == 0:
        return rows
    home = exact_device(rows.device)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=home)
    for part in rows.split(_COLUMNS, dim=1):
        wide = exact(part)
        gram.addmm_(wide, wide.T)
    squares, turns = torch.linalg.eigh(gram)
    keep = squares > max(noise**2, 1e-14 * float(squares[-1]))
    change = (turns[:, keep] / squares[keep].sqrt()).T
    for part in rows.split(_COLUMNS, dim=1):
        part[: len(change)] = change @ exact(part)
    return rows[: len(change)]
