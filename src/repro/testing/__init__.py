"""What the tests of several papers share: hostile inputs, a relative comparison, mutants, and contracts of drop-in
layers.

A paper's own `test_method.py` keeps what is its own: the float64 oracle, the departures and the mutants.
Only tests import this package, so its digest is in no trial.  It needs the extra `test` (hypothesis, pytest).
"""

from repro.testing.drop_in import CLAUSES, check_drop_in, check_signature, sized
from repro.testing.mutation import check_float32, faults_of, mutation
from repro.testing.norms import (
    assert_near,
    assert_same_outcome,
    batch_normalised,
    check_copies,
    check_dtypes,
    check_extremes,
    check_factory,
    check_gradients,
    check_layouts,
    check_norm_contract,
    check_twin,
    check_vmap,
    draw,
    hard_inputs,
    mixed,
    norm_inputs,
    outcome,
    quiet_import,
    residual_mlp_in_numpy,
    scramble,
)
from repro.testing.optimizers import check_foreach, check_optimizer, matrices_only, trajectory

__all__ = [
    "CLAUSES",
    "assert_near",
    "assert_same_outcome",
    "batch_normalised",
    "check_copies",
    "check_drop_in",
    "check_dtypes",
    "check_extremes",
    "check_factory",
    "check_float32",
    "check_gradients",
    "check_layouts",
    "check_norm_contract",
    "check_foreach",
    "check_optimizer",
    "check_signature",
    "check_twin",
    "check_vmap",
    "draw",
    "faults_of",
    "hard_inputs",
    "matrices_only",
    "mixed",
    "mutation",
    "norm_inputs",
    "outcome",
    "quiet_import",
    "residual_mlp_in_numpy",
    "scramble",
    "sized",
    "trajectory",
]
