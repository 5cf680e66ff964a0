r"""Bands of the deterministic equivalent: their edges, the walk along them, and nodes on them (theory section 6).

The spectrum s = -z > 0 is the image of arcs kappa = x + i y(x) with A(x, y) = 1, that is Im z = 0, over the bands
phi(x) = A(x, 0) > 1 (`mode_sums` has A and the derivatives). Edges are roots of phi = 1 between the poles -lambda_k
and the dips of phi; a band is walked from its left edge to its right one in pieces on each of which y(x)^2, or x(y)
where the arc is steep, is smooth, and these carry the nodes of the spectral measures.

Positions are given as kappa = -base + d + i y, base an eigenvalue (or 0), so that distances to it keep all their
digits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import float64, float64_pair, int64, int_vector, jit, matrix, status_and_step, vector
from scalefield._native.mode_sums import FAILED, OK, node_types, sums_at, weighted_sum_at

__all__ = [
    "FAILED",
    "FULL",
    "LEFT",
    "OK",
    "PLAIN",
    "RIGHT",
    "STEEP",
    "TIP",
    "WHOLE",
    "edge_image",
    "evaluate_pieces",
    "find_dips",
    "find_edge",
    "find_tip",
    "solve_arc_points",
    "walk_band",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Status of a kernel, beside OK and FAILED.
FULL = 1

# Kinds of pieces of a band: which of its ends are band edges; WHOLE is a band between two edges in one rule, TIP a
# piece in y next to the edge at kappa = 0 (N = M). STEEP pieces, on which x hardly changes, are in y as well.
PLAIN = 0
LEFT = 1
RIGHT = 2
WHOLE = 3
TIP = 4
STEEP = 5

# Arcs that fall by more than this per unit of x are walked in y, from y to this multiple of it or less far.
_STEEP_SLOPE = 4.0
_STEEP_FACTOR = 0.3


@jit(float64_pair(float64, float64, float64, *node_types, vector))
def edge_image(
    base: float,
    mode: float,
    d: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> tuple[float, float]:
    """s = -z at a band edge kappa = d - base, and |ds/dx| along the arc there."""
    if d == base:
        return 0.0, math.inf
    ratio, _excess, _slope, _e = sums_at(
        base, mode, d, 0.0,
        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
    )  # fmt: skip
    s = (base - d) * ratio.real
    # |z'|^2/Re z' = (Im z')^2/(2 y^2 E) with Im z' of order y; E has few digits where y is much smaller.
    y = 1e-4 * abs(d)
    _ratio, _excess, slope, e = sums_at(
        base, mode, d, y,
        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
    )  # fmt: skip
    return s, (slope.imag / y) ** 2 / (2.0 * e)


@jit(float64_pair(float64, float64, float64, *node_types, vector))
def _phi(
    base: float,
    mode: float,
    d: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> tuple[float, float]:
    """phi - 1, phi = A at y = 0, and its derivative by a step into the complex plane."""
    step = 1e-9 * abs(d)
    _ratio, _excess, slope, _e = sums_at(
        base, mode, d, step,
        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
    )  # fmt: skip
    return -slope.real, -slope.imag / step


@jit(float64(float64, float64))
def _between(low: float, high: float) -> float:
    """A point between two of one sign, also where they are decades apart, as next to a gap of the spectrum."""
    small, large = (low, high) if abs(low) < abs(high) else (high, low)
    if abs(large) <= 4.0 * abs(small):
        return 0.5 * (low + high)
    return large * math.sqrt(small / large) if small != 0.0 else 0.01 * large


@jit(float64(float64, float64, float64, float64, *node_types, vector))
def find_edge(
    base: float,
    mode: float,
    near: float,
    far: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> float:
    """Band edge: the d between `near` (phi > 1) and `far` (phi < 1), both on one side of the pole, with phi = 1.

    By Newton's method on phi^(-1/2), which is linear in d around a lone pole, kept inside the bracket.
    """
    # The radius of a lone pole's band, if that is in the bracket.
    d = 0.5 * (near + far)
    low, high = near, far
    for i in range(200):
        excess, slope = _phi(
            base, mode, d, eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out
        )
        if excess > 0.0:
            low = d
        else:
            high = d
        # h = phi^(-1/2) - 1, h' = -phi'/(2 phi^(3/2)); 1 - sqrt(phi) = -(phi - 1)/(1 + sqrt(phi))
        phi = 1.0 + excess
        step = -2.0 * phi * excess / ((1.0 + math.sqrt(phi)) * slope) if slope != 0.0 else 0.0
        new = d + step
        if step != 0.0 and abs(step) <= 1e-9 * abs(d):
            return new
        if not (min(low, high) < new < max(low, high)) or i % 16 == 15:
            new = _between(low, high)
        if abs(high - low) <= 4e-16 * abs(d):
            return new
        d = new
    return d


@jit(status_and_step(vector, vector, float64, float64, int64, *node_types, vector, int_vector, matrix))
def find_dips(
    poles: Array,
    multiplicity: Array,
    bound: float,
    stop_bound: float,
    numbered: int,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    index_out: Integers,
    dips_out: Array,
) -> tuple[int, int]:
    """Minima of phi between neighbouring poles -lambda that are below `bound`.

    Parameters
    ----------
    poles, multiplicity : array, shape (n,)
        Different eigenvalues, decreasing, and how often each occurs.
    bound : float
        Minima above it are left out; quickly, where a few poles alone exceed it.
    stop_bound : float
        The search ends at the first minimum above it.
    numbered : int
        1 where pole i is mode i + 1 of a power law.
    index_out : array of int, shape (n,)
        Pole left of each dip.
    dips_out : array, shape (n, 4)
        phi - 1 at the dip, its distance from the right pole (negative), and where phi < 1 the edges as distances from
        the left (positive) and right pole (negative).

    Returns
    -------
    status, n_dips : int
    """
    n_dips = 0
    inverse_width = settings[2]
    n_poles = poles.size
    for i in range(n_poles - 1):
        left, right = poles[i], poles[i + 1]
        distance = left - right
        a = multiplicity[i] * left * left * inverse_width
        b = multiplicity[i + 1] * right * right * inverse_width
        # min over x of a/x^2 + b/(distance - x)^2 = (a^(1/3) + b^(1/3))^3/distance^2
        root_a, root_b = a ** (1.0 / 3.0), b ** (1.0 / 3.0)
        if (root_a + root_b) ** 3 > bound * distance * distance and numbered == 0:
            continue
        # Distances d from the right pole, the smaller eigenvalue: next to a gap of the spectrum they are beyond the
        # digits of those from the left one.
        low, high = 0.0, distance
        d = distance * (root_b / (root_a + root_b))
        if numbered == 0:
            # The neighbours within eight poles, by Newton's method on the convex sum; its minimum is at most phi's.
            low_w, high_w = low, high
            for _ in range(6):
                value, slope, curvature = 0.0, 0.0, 0.0
                for j in range(max(0, i - 8), min(n_poles, i + 10)):
                    inverse = 1.0 / ((poles[j] - right) - d)
                    term = multiplicity[j] * poles[j] * poles[j] * inverse_width * inverse * inverse
                    value += term
                    slope += 2.0 * term * inverse
                    curvature += 6.0 * term * inverse * inverse
                if slope < 0.0:
                    low_w = d
                else:
                    high_w = d
                new = d - slope / curvature
                if not low_w < new < high_w:
                    new = 0.5 * (low_w + high_w)
                if abs(new - d) < 1e-3 * distance:
                    break
                d = new
            # A convex function is above its tangent: never above the true minimum.
            least = value - max(slope * (d - low_w), -slope * (high_w - d), 0.0)
            if least > bound:
                continue
        mode, next_mode = (i + 1.0, i + 2.0) if numbered else (0.0, 0.0)
        # Regula falsi (Illinois) for dphi/dd times the cube of both distances (over their sum's), whose ends are known.
        g_low, g_high = -2.0 * b, 2.0 * a
        excess = 0.0
        for iteration in range(60):
            excess, slope = _phi(
                right, next_mode, -d, eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out
            )
            g = -slope * (d * (1.0 - d / distance)) ** 3
            if g < 0.0:
                if iteration > 0:
                    g_high *= 0.5
                low, g_low = d, g
            else:
                if iteration > 0:
                    g_low *= 0.5
                high, g_high = d, g
            new = (low * g_high - high * g_low) / (g_high - g_low)
            if not low < new < high or iteration % 8 == 7:
                new = _between(low, high)
            if abs(new - d) < 1e-8 * min(d, distance - d):
                break
            d = new
        if 1.0 + excess > stop_bound:
            break
        if 1.0 + excess > bound:
            continue
        dips_out[n_dips, 0] = excess
        dips_out[n_dips, 1] = -d
        if excess < 0.0:
            dips_out[n_dips, 2] = find_edge(
                left, mode, 0.0, distance - d,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            dips_out[n_dips, 3] = find_edge(
                right, next_mode, 0.0, -d,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
        index_out[n_dips] = i
        n_dips += 1
    return OK, n_dips


@jit(float64(float64, float64, float64, float64, *node_types, vector))
def _arc(
    base: float,
    mode: float,
    d: float,
    guess: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> float:
    """y > 0 with A(x, y) = 1 at x = d - base, by Newton's method on 1/A in y^2; `guess` is a first y^2 > 0."""
    low, high = 0.0, math.inf
    square = guess
    for _ in range(100):
        _ratio, excess, _slope, e = sums_at(
            base, mode, d, math.sqrt(square),
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
        )  # fmt: skip
        if excess > 0.0:
            low = square
        else:
            high = square
        # 1/A is nearly linear in y^2: y^2 + A (A - 1)/E
        new = square + (1.0 + excess) * excess / e if e > 0.0 else -1.0
        # Newton's next step would be of the order of the square of this one. (Before the bracket, whose end may be
        # the root to rounding.)
        if abs(new - square) <= 1e-8 * square:
            return math.sqrt(new)
        if not low < new < high:
            new = 0.5 * (low + high) if high < math.inf else 4.0 * square
            if low == 0.0:
                new = 0.05 * square
        if new > 100.0 * square:
            new = 100.0 * square
        if new < 1e-300:
            return math.sqrt(new)
        if high < math.inf and high - low <= 1e-15 * high:
            return math.sqrt(new)
        square = new
    return math.sqrt(square)


@jit(float64(float64, float64, float64))
def _clearance(x: float, y: float, alpha: float) -> float:
    """Im k*, the distance of the pole from the modes; 0 for x >= 0."""
    if x >= 0.0:
        return 0.0
    height: float = math.hypot(x, y) ** (-1.0 / alpha) * math.sin(math.atan2(y, -x) / alpha)
    return height


@jit(float64(float64, float64, *node_types, vector))
def find_tip(
    y: float,
    guess: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> float:
    """x with A(x, y) = 1 near `guess` where the arc is steep, as near kappa = 0 at N = M (x of order y^2)."""
    x = guess
    for _ in range(20):
        _ratio, excess, slope, _e = sums_at(
            0.0, 0.0, x, y,
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
        )  # fmt: skip
        # dA/dx = -Im z'/y
        step = y * excess / slope.imag
        x += step
        if abs(step) <= 1e-8 * abs(x) or abs(x) < 1e-9 * y:
            break
    return x


@jit(status_and_step(*[float64] * 7, vector, float64, float64, int64, *node_types, vector, matrix, int_vector))
def walk_band(
    left: float,
    right: float,
    left_space: float,
    right_space: float,
    left_height: float,
    right_height: float,
    right_level: float,
    breaks: Array,
    first_length: float,
    smooth_above: float,
    n_pieces: int,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    pieces_out: Array,
    kinds_out: Integers,
) -> tuple[int, int]:
    """Cut a band left < x < right into pieces not longer than y(x), the distance of its singularities.

    Parameters
    ----------
    left, right : float
        Edges.
    left_space, right_space : float
        Distance of the next singularity beyond each edge.
    left_height, right_height : float
        Largest y on the pieces at the edges: poles at a distance r of an edge make y^2 = -r^2 singular.
    right_level : float
        The last piece begins at an s not above this, so that functions of s are smooth on it.
    breaks : array
        Points (dips) where pieces must end, increasing.
    first_length : float
        Length of the first piece to try.
    smooth_above : float
        Where x < 0 and the pole k* is farther than this from the real axis, the modes act as a continuum and
        pieces may be as long as |x|/3.
    n_pieces : int
        Pieces that are there already.
    pieces_out : array, shape (capacity, 5)
        Appended: base, mode, first and last d, a first guess of y^2 in the middle; for STEEP 0, 0, lower and upper y
        and x at the upper one.
    kinds_out : array, shape (capacity,)
        Appended: PLAIN, LEFT, RIGHT or STEEP.

    Returns
    -------
    status, n_pieces : int
        Status FULL if the capacity does not suffice.
    """
    alpha = settings[0]
    x = left
    y = 0.0
    length = min(first_length, 3.0 * left_space)
    i_break = 0
    square = first_length * first_length
    while True:
        if n_pieces == kinds_out.size:
            return FULL, n_pieces
        while i_break < breaks.size and breaks[i_break] <= x:
            i_break += 1
        rest = right - x
        if y > 0.0:
            last = min(y, 3.0 * right_space) >= 1.2 * rest and y <= right_height
            last = last and (i_break >= breaks.size or breaks[i_break] >= right)
            slope = 0.0j
            if starts.size == 1 or (last and right_level < math.inf):
                ratio, _excess, slope, _e = sums_at(
                    0.0, 0.0, x, y,
                    eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                )  # fmt: skip
                last = last and y * ratio.imag - x * ratio.real <= right_level
            if not last and starts.size == 1 and abs(x) < 2.0 * y and slope.imag > _STEEP_SLOPE * slope.real:
                # Above a gap of the spectrum y falls like sqrt(-x), many decades of it where x has no digits left.
                # x(y) is singular where the arc turns flat: the slope may not fall much on a piece.
                first = slope
                factor = _STEEP_FACTOR
                found = False
                x_new, y_new = 0.0, 0.0
                for _ in range(5):
                    y_new = factor * y
                    x_new = find_tip(
                        y_new, x,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
                    _ratio, excess, slope, _e = sums_at(
                        0.0, 0.0, x_new, y_new,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
                    found = x <= x_new < right and slope.imag > _STEEP_SLOPE * slope.real
                    found = found and slope.imag * first.real > 0.4 * first.imag * slope.real
                    found = found and abs(excess) <= 1e-6 * slope.imag
                    if found:
                        break
                    factor = math.sqrt(factor)
                if found:
                    pieces_out[n_pieces, 0] = 0.0
                    pieces_out[n_pieces, 1] = 0.0
                    pieces_out[n_pieces, 2] = y_new
                    pieces_out[n_pieces, 3] = y
                    pieces_out[n_pieces, 4] = x
                    kinds_out[n_pieces] = STEEP
                    n_pieces += 1
                    x, y = x_new, y_new
                    square = y * y
                    continue
            if last:
                pieces_out[n_pieces, 0] = 0.0
                pieces_out[n_pieces, 1] = 0.0
                if starts.size == 1 and rest < 0.05 * y and right_height < math.inf:
                    pieces_out[n_pieces, 2] = 0.0
                    pieces_out[n_pieces, 3] = y
                    pieces_out[n_pieces, 4] = x
                    kinds_out[n_pieces] = STEEP
                else:
                    pieces_out[n_pieces, 2] = x
                    pieces_out[n_pieces, 3] = right
                    pieces_out[n_pieces, 4] = y * y
                    kinds_out[n_pieces] = RIGHT
                return OK, n_pieces + 1
            length = 0.8 * y
            if starts.size > 1 and _clearance(x, y, alpha) > smooth_above:
                length = max(length, -x / 3.0)
        length = min(length, 0.5 * rest)
        end = x + length
        if i_break < breaks.size and x + 1.4 * length > breaks[i_break]:
            # Up to the break, or half of the way.
            if end >= breaks[i_break]:
                # To the break itself: x + (break - x) may be below it by rounding, and the rest of no length.
                end = breaks[i_break]
                length = end - x
            else:
                length = 0.5 * (breaks[i_break] - x)
                end = x + length
        y_new = 0.0
        for _ in range(200):
            y_new = _arc(
                0.0, 0.0, end, square,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            smooth = (
                starts.size > 1
                and y > 0.0
                and _clearance(x, y, alpha) > smooth_above
                and _clearance(end, y_new, alpha) > smooth_above
            )
            if y > 0.0:
                # kappa = 0, where s = 0, is as singular as a pole.
                found = y_new >= 0.8 * length or smooth
                found = found and math.hypot(end, y_new) >= 0.4 * math.hypot(x, y)
            else:
                found = 0.95 * length <= y_new <= left_height
            if found:
                break
            length *= 0.5
            end = x + length
            if length <= 1e-15 * abs(x):
                break
            square = max(y_new * y_new, 1e-4 * length * length)
        pieces_out[n_pieces, 0] = 0.0
        pieces_out[n_pieces, 1] = 0.0
        pieces_out[n_pieces, 2] = x
        pieces_out[n_pieces, 3] = end
        pieces_out[n_pieces, 4] = y_new * y_new
        kinds_out[n_pieces] = LEFT if y == 0.0 else PLAIN
        n_pieces += 1
        if length <= 1e-15 * abs(x):
            return FAILED, n_pieces
        x = end
        y = y_new
        square = y * y


@jit(int64(matrix, int_vector, int_vector, vector, vector, int64, int64, *node_types, vector, matrix))
def evaluate_pieces(
    pieces: Array,
    kinds: Integers,
    node_counts: Integers,
    gauss_nodes: Array,
    gauss_weights: Array,
    first_piece: int,
    last_piece: int,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    nodes_out: Array,
) -> int:
    r"""Nodes of the two spectral measures on pieces first_piece..last_piece-1.

    .. math::
        s = -\mathrm{Re}\, z, \qquad \left|\frac{ds}{dx}\right| = \frac{|z'|^2}{\mathrm{Re}\, z'}, \qquad
        \rho = \frac{N y}{\pi |\kappa|^2} ds, \qquad
        \mu = \frac{y}{\pi s} \sum_k \frac{u_k^2 \lambda_k}{|\kappa+\lambda_k|^2} ds

    Parameters
    ----------
    pieces, kinds : array
        As `walk_band` makes them; WHOLE pieces are bands from edge to edge.
    node_counts : array of int, shape (n_pieces + 1,)
        Cumulated numbers of nodes.
    gauss_nodes, gauss_weights : array
        Gauss-Legendre rule on (0, 1).
    nodes_out : array, shape (n_nodes, 5)
        s, rho, mu, x, y; s = 0 marks a node without mass.
    """
    inverse_width = settings[2]
    for piece in range(first_piece, last_piece):
        base, mode = pieces[piece, 0], pieces[piece, 1]
        start, end, square = pieces[piece, 2], pieces[piece, 3], pieces[piece, 4]
        kind = kinds[piece]
        n = node_counts[piece + 1] - node_counts[piece]
        shape = 1.0
        for i in range(n):
            if kind == WHOLE:
                angle = math.pi * (i + 0.5) / n
                half = 0.5 * (end - start)
                # start + half (1 - cos)
                d = start + 2.0 * half * math.sin(0.5 * angle) ** 2
                weight = math.pi / n * half * math.sin(angle)
                square = shape * (half * math.sin(angle)) ** 2
            elif kind == LEFT:
                u = gauss_nodes[i]
                d = start + (end - start) * u * u
                weight = 2.0 * u * gauss_weights[i] * (end - start)
                if i == 0:
                    square *= u * u
            elif kind == RIGHT:
                u = gauss_nodes[n - 1 - i]
                d = end - (end - start) * u * u
                weight = 2.0 * u * gauss_weights[i] * (end - start)
            else:
                d = start + (end - start) * gauss_nodes[i]
                weight = gauss_weights[i] * (end - start)
            if kind == STEEP:
                # From the upper end, where x is known, down.
                y = start + (end - start) * gauss_nodes[n - 1 - i]
                weight = gauss_weights[n - 1 - i] * (end - start)
                square = find_tip(
                    y, square,
                    eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                )  # fmt: skip
                d = square
            elif kind == TIP:
                y = start + (end - start) * gauss_nodes[i]
                # square holds the limit of x/y^2, for which x has no digits of its own where y is small.
                d = square * y * y
                if y > 1e-4 * settings[4]:
                    d = find_tip(
                        y, d,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
            else:
                y = _arc(
                    base, mode, d, square,
                    eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                )  # fmt: skip
            ratio, _excess, z_slope, e = sums_at(
                base, mode, d, y,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            power = weighted_sum_at(
                base, mode, d, y, settings[1], source,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings,
            )[1]  # fmt: skip
            if kind == WHOLE:
                shape = y * y / (half * math.sin(angle)) ** 2
            if kind not in (TIP, STEEP):
                square = y * y
            x = d - base
            s = -(x * ratio.real - y * ratio.imag)
            # Re z' = 1 - Re V = 2 y^2 E at A = 1
            slope = 2.0 * y * y * e
            # |ds/dx| = |z'|^2/Re z' and |ds/dy| = |z'|^2/|Im z'| along the arc
            stretch = slope * slope + z_slope.imag * z_slope.imag
            stretch /= abs(z_slope.imag) if kind in (TIP, STEEP) else slope
            row = nodes_out[node_counts[piece] + i]
            if not (s > 0.0 and y > 0.0 and stretch < math.inf):
                row[0] = 0.0
                row[1] = 0.0
                row[2] = 0.0
            else:
                row[0] = s
                row[1] = y * stretch * weight / (math.pi * inverse_width * (x * x + y * y))
                row[2] = y * power * stretch * weight / (math.pi * s)
            row[3] = x
            row[4] = y
    return OK


@jit(int64(vector, vector, vector, *node_types, vector, matrix))
def solve_arc_points(
    s: Array,
    x_low: Array,
    x_high: Array,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    densities_out: Array,
) -> int:
    """Densities (source, trace) at eigenvalues s, each with an interval of x inside one band that holds it."""
    inverse_width = settings[2]
    for i in range(s.size):
        low, high = x_low[i], x_high[i]
        x = 0.5 * (low + high)
        square = (0.5 * (high - low)) ** 2
        y = 0.0
        ratio, z_slope, e = 0.0j, 0.0j, 0.0
        for _ in range(100):
            y = _arc(
                0.0, 0.0, x, square,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            ratio, _excess, z_slope, e = sums_at(
                0.0, 0.0, x, y,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            here = -(x * ratio.real - y * ratio.imag)
            slope = 2.0 * y * y * e
            stretch = (slope * slope + z_slope.imag * z_slope.imag) / slope
            # s decreases along the arc.
            if here > s[i]:
                low = x
            else:
                high = x
            new = x + (here - s[i]) / stretch
            square = y * y
            if abs(new - x) <= 1e-15 * abs(x) or high - low <= 4e-16 * abs(x):
                break
            if not low < new < high:
                new = 0.5 * (low + high)
            x = new
        power = weighted_sum_at(
            0.0, 0.0, x, y, settings[1], source,
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings,
        )[1]  # fmt: skip
        densities_out[i, 0] = y * power / (math.pi * s[i])
        densities_out[i, 1] = y / (math.pi * inverse_width * (x * x + y * y))
    return OK
