"""A weight as a dense dictionary and sparse codes: which atoms each output takes, and the atoms.

W [out, in] becomes U D with D [k, in] dense (an atom a row) and U [out, k] with s entries a row, so that each
output is a combination of s atoms of its own. Both are to make ||(W - U D) S||_F small, S weighing inputs
(`low_rank`). With W S = L diag(v) R^T, the rows of Y = L diag(v) are those of W S in an orthonormal basis, so
codes of the rows of Y are codes of the weight, whatever S is; and for given codes the best dictionary is
D = U^+ W, which does not depend on S either. The two steps alternate (the method of optimal directions:
Engan, Aase, Husoy 1999); neither makes the error larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.low_rank import Spectrum

CHUNK_ELEMENTS = 1 << 25
RIDGE = 1e-10


def fitted(
    weight: Tensor, found: Spectrum, atoms: int, entries: int, rounds: int, steps: int
) -> tuple[Tensor, Tensor]:
    """(D float64 [atoms, in], U float64 [out, atoms] with at most `entries` non-zeros a row).

    weight: [out, in]; found: its spectrum. The first atoms are the first directions, then the rows that they
    leave most of. `rounds` alternations follow the first coding, each row of which picks its atoms in
    `steps` steps.
    """
    rows = found.left * found.values
    dictionary = _first_atoms(rows, atoms)
    codes = _coded(rows, dictionary, entries, steps)
    for _ in range(rounds):
        dictionary = _unit(_refilled(rows, codes, _solved(codes, rows)))
        support = codes != 0
        kept, fresh = _refit(rows, dictionary, support), _coded(rows, dictionary, entries, steps)
        better = _errors(rows, fresh, dictionary) < _errors(rows, kept, dictionary)
        codes = torch.where(better[:, None], fresh, kept)
    atoms_of_weight = _solved(codes, weight.to(torch.float64))
    return _balanced(atoms_of_weight, codes)


def _first_atoms(rows: Tensor, atoms: int) -> Tensor:
    """Float64 [atoms, p]: the axes of the rows [out, p], largest first, then rows by their own length."""
    width = rows.shape[1]
    axes = torch.eye(width, dtype=rows.dtype, device=rows.device)[:atoms]
    if atoms <= width:
        return axes
    order = rows.square().sum(1).argsort(descending=True, stable=True)
    again = order.repeat(-(-(atoms - width) // len(order)))[: atoms - width]
    return torch.cat([axes, _unit(rows[again])])


def _unit(dictionary: Tensor) -> Tensor:
    """Atoms of length 1; one that is zero stays zero."""
    length = dictionary.norm(dim=1, keepdim=True)
    return dictionary / torch.where(length > 0, length, 1.0)


def _solved(codes: Tensor, rows: Tensor) -> Tensor:
    """The shortest dictionary [k, p] with the smallest ||rows - codes @ D||_F."""
    found: Tensor = torch.linalg.pinv(codes.T @ codes, hermitian=True) @ (codes.T @ rows)
    return found


def _refilled(rows: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    """The dictionary with those rows that are reproduced worst in the place of atoms that none takes."""
    spare = (codes == 0).all(0).nonzero()[:, 0]
    if not len(spare):
        return dictionary
    left = rows - codes @ dictionary
    worst = left.square().sum(1).argsort(descending=True, stable=True)[: len(spare)]
    dictionary[spare[: len(worst)]] = left[worst]
    return dictionary


def _errors(rows: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    return (rows - codes @ dictionary).square().sum(1)


def _coded(rows: Tensor, dictionary: Tensor, entries: int, steps: int) -> Tensor:
    """Codes [out, k] with at most `entries` entries a row, by orthogonal matching pursuit that takes several
    atoms a step (Wang, Kwon, Shim 2012): those that what is left of a row has the largest products with, all
    entries being fitted again after each step. Atoms have length 1."""
    gram, products = dictionary @ dictionary.T, rows @ dictionary.T
    codes = torch.zeros_like(products)
    bounds = sorted({entries * (step + 1) // steps for step in range(steps)} - {0})
    chunk = max(1, CHUNK_ELEMENTS // (entries * entries))
    for start in range(0, len(rows), chunk):
        part, places = products[start : start + chunk], None
        mine = torch.zeros_like(part)
        for bound in bounds:
            left = (part - mine @ gram).abs()
            known = 0 if places is None else places.shape[1]
            if places is not None:
                left.scatter_(1, places, -1.0)
            picked = left.argsort(dim=1, descending=True, stable=True)[:, : bound - known]
            places = picked if places is None else torch.cat([places, picked], 1)
            mine = _least_squares(gram, part, places)
        codes[start : start + chunk] = mine
    return codes


def _refit(rows: Tensor, dictionary: Tensor, support: Tensor) -> Tensor:
    """Codes on given supports bool [out, k], fitted to a dictionary."""
    gram, products = dictionary @ dictionary.T, rows @ dictionary.T
    most = int(support.sum(1).max())
    if not most:
        return torch.zeros_like(products)
    # Rows with fewer entries take any others along, which are zero again afterwards.
    places = support.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    codes = torch.zeros_like(products)
    chunk = max(1, CHUNK_ELEMENTS // (most * most))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        used = support[part].gather(1, places[part])
        codes[part] = _least_squares(gram, products[part], places[part], used)
    return codes


def _least_squares(gram: Tensor, products: Tensor, places: Tensor, used: Tensor | None = None) -> Tensor:
    """Codes [n, k] whose entries at `places` int64 [n, t] reproduce rows best, `products` [n, k] being those
    of the rows with atoms; entries that are not `used` [n, t] are zero."""
    inner = gram[places[:, :, None], places[:, None, :]]
    outer = products.gather(1, places)
    if used is not None:
        inner = inner * (used[:, :, None] & used[:, None, :])
        outer = outer * used
        inner = inner + torch.diag_embed((~used).to(inner.dtype))
    inner = inner + RIDGE * torch.eye(places.shape[1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(inner)
    solved = torch.cholesky_solve(outer[:, :, None], factor)[:, :, 0]
    return torch.zeros_like(products).scatter(1, places, solved)


def _balanced(dictionary: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with atoms and their entries of equal lengths, so that neither leaves a narrow
    type."""
    long, wide = dictionary.norm(dim=1), codes.norm(dim=0)
    both = (long > 0) & (wide > 0)
    scale = torch.where(both, (wide / torch.where(both, long, 1.0)).sqrt(), 1.0)
    return dictionary * scale[:, None], codes / scale
