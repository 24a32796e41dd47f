"""The published laws: every number that the papers print, with the tolerance that their rounding asks for."""

import math
import warnings

import numpy as np
import pytest

from cme295lab.scaling import (
    CHINCHILLA,
    CHINCHILLA_ROUNDED,
    EPOCH,
    FRONTIER_TABLES,
    GOPHER_FLOPS,
    PF_DAY_FLOPS,
    PUBLISHED_EXPONENTS,
    PUBLISHED_MODELS,
    ExtrapolationWarning,
    ParametricLaw,
    Run,
    columns,
    compare_laws,
    kaplan,
    optimal_allocation,
    published_model,
    table_frontier,
    training_flops,
)

LAWS = {"rounded": CHINCHILLA_ROUNDED, "full": CHINCHILLA, "epoch": EPOCH}


def silent(flops: float, law) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        return optimal_allocation(flops, law)


# Kaplan et al. 2020


@pytest.mark.parametrize(
    ("law", "factor"),
    [(kaplan.LOSS_BY_PARAMETERS, 0.9487), (kaplan.LOSS_BY_TOKENS, 0.9363), (kaplan.LOSS_BY_MIN_COMPUTE, 0.9659)],
    ids=["parameters", "tokens", "compute"],
)
def test_kaplan_doubling_multiplies_the_loss_as_published(law, factor: float) -> None:
    assert law.factor(2) == pytest.approx(factor, abs=1e-4)
    assert law(2e9) / law(1e9) == pytest.approx(factor, abs=1e-4)


def test_kaplan_losses_of_known_sizes() -> None:
    assert kaplan.LOSS_BY_PARAMETERS(1.5e9) == pytest.approx(2.3036, abs=1e-4)
    assert kaplan.LOSS_BY_PARAMETERS(175e9) == pytest.approx(1.6044, abs=1e-4)
    assert kaplan.LOSS_BY_TOKENS(300e9) == pytest.approx(1.6378, abs=1e-4)


def test_kaplan_compute_is_in_flop_and_the_paper_in_pf_days() -> None:
    assert PF_DAY_FLOPS == 8.64e19
    assert kaplan.LOSS_BY_COMPUTE(PF_DAY_FLOPS) == pytest.approx(1.6e7**0.057)
    assert kaplan.LOSS_BY_MIN_COMPUTE(PF_DAY_FLOPS) == pytest.approx(3.1e8**0.050)


def test_kaplan_exponents_that_follow_from_others() -> None:
    assert kaplan.predicted_compute_exponent() == pytest.approx(0.0520, abs=1e-4)
    assert kaplan.converged_gap() == pytest.approx(0.10)


def test_kaplan_joint_loss_tends_to_a_power_law_of_the_size_with_endless_data() -> None:
    assert kaplan.joint_loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076, rel=1e-9)
    assert kaplan.joint_loss(1e30, 1e10) == pytest.approx((1.8e13 / 1e10) ** 0.103, rel=1e-6)
    assert kaplan.loss_after_steps(1e9, 1e30) == pytest.approx((6.5e13 / 1e9) ** 0.077)


def test_kaplan_critical_batch_grows_as_the_loss_falls() -> None:
    assert kaplan.critical_batch_tokens(1.0) == 2.1e8
    assert kaplan.critical_batch_tokens(2.0) == pytest.approx(2.1e8 / 2 ** (1 / 0.21))


def test_kaplan_frontier_at_one_pf_day() -> None:
    found = [
        frontier(PF_DAY_FLOPS)
        for frontier in (
            kaplan.efficient_parameters, kaplan.efficient_batch_tokens, kaplan.efficient_steps, kaplan.efficient_tokens
        )
    ]  # fmt: skip
    assert found == [1.3e9, 2.0e6, 5.4e3, 2e10]
    assert kaplan.efficient_parameters(10 * PF_DAY_FLOPS) == pytest.approx(1.3e9 * 10**0.73)


def test_kaplan_tokens_are_twice_batch_times_steps_and_a_tenth_less_than_the_budget_leaves() -> None:
    """Training at the critical batch takes twice the minimal steps, and twice the minimal compute."""
    for flops in (1e18, 1e20):
        product = 2 * kaplan.efficient_batch_tokens(flops) * kaplan.efficient_steps(flops)
        assert kaplan.efficient_tokens(flops) == pytest.approx(product, rel=0.08)
        assert kaplan.efficient_tokens(flops / 2) / kaplan.allocate(flops).num_tokens == pytest.approx(0.90, abs=0.01)


def test_kaplan_allocation_is_the_one_that_hoffmann_quotes() -> None:
    """Hoffmann et al. 2022, §D.4: 4.68 billion parameters at 1e21 FLOP, where approach 1 says 2.86 billion."""
    assert optimal_allocation(1e21, "chinchilla-1").num_parameters == pytest.approx(2.86e9, rel=2e-3)
    assert silent(1e21, "kaplan").num_parameters == pytest.approx(4.68e9, rel=2e-3)


# Hoffmann et al. 2022: tables


@pytest.mark.parametrize(
    ("law", "exponent"), [("chinchilla-1", 0.4981), ("chinchilla-2", 0.4899), ("chinchilla-3-table", 0.4587)]
)
def test_table_exponents_are_those_of_table_2(law, exponent: float) -> None:
    frontier = table_frontier(law)
    assert frontier.a == pytest.approx(exponent, abs=1e-4)
    published = PUBLISHED_EXPONENTS[law.removesuffix("-table")]
    assert frontier.a == pytest.approx(published.a, abs=0.005)
    assert frontier.b == pytest.approx(published.b, abs=0.005)


def test_table_rows_are_6_n_d() -> None:
    for law, rows in FRONTIER_TABLES.items():
        assert len(rows) == 9
        for row in rows:
            loose = (law, row.num_parameters) in {
                ("chinchilla-1", 67e9), ("chinchilla-3-table", 67e9), ("chinchilla-3-table", 280e9)
            }  # fmt: skip
            ratio = training_flops(row.num_parameters, row.num_tokens) / row.flops
            assert ratio == pytest.approx(1, abs=0.05 if loose else 0.012), (law, row)


def test_misprint_of_table_a3_would_break_the_trend() -> None:
    """Printed 1.26e24 FLOP for 175B by approach 3; 6 N D of the same row, and the trend, say ten times that."""
    rows = {row.num_parameters: row for row in FRONTIER_TABLES["chinchilla-3-table"]}
    row, printed = rows[175e9], 1.26e24
    assert row.flops == 1.26e25
    assert training_flops(175e9, row.num_tokens) / printed == pytest.approx(10, rel=0.01)
    assert rows[67e9].flops < row.flops < rows[280e9].flops
    assert printed < rows[67e9].flops  # a larger model for less compute: impossible


@pytest.mark.parametrize(
    ("law", "low", "high"),
    [("chinchilla-1", 20.0, 22.4), ("chinchilla-2", 19.3, 29.2), ("chinchilla-3-table", 23.0, 142.6)],
)
def test_table_tokens_per_parameter(law, low: float, high: float) -> None:
    ratios = [row.tokens_per_parameter for row in FRONTIER_TABLES[law]]
    assert min(ratios) == pytest.approx(low, abs=0.1)
    assert max(ratios) == pytest.approx(high, abs=0.8)


@pytest.mark.parametrize(
    ("size", "units"),
    [(400e6, 1 / 29968), (1e9, 1 / 4761), (10e9, 1 / 46), (67e9, 1), (175e9, 6.7), (280e9, 17.2), (520e9, 59.5),
     (1e12, 221.3), (10e12, 22515.9)],
)  # fmt: skip
def test_table_3_in_units_of_gopher(size: float, units: float) -> None:
    (row,) = [row for row in FRONTIER_TABLES["chinchilla-1"] if row.num_parameters == size]
    assert row.flops / GOPHER_FLOPS == pytest.approx(units, rel=0.02)


FRONTIER = [
    (1e18, 91.6e6, 1.82e9, 95.5e6, 1.75e9, 96.4e6, 1.73e9),
    (1e19, 289e6, 5.78e9, 295e6, 5.65e9, 277e6, 6.02e9),
    (1e20, 908e6, 18.3e9, 912e6, 18.3e9, 797e6, 20.9e9),
    (1e21, 2.86e9, 58.3e9, 2.82e9, 59.2e9, 2.29e9, 72.8e9),
    (1e22, 9.01e9, 185e9, 8.70e9, 191e9, 6.58e9, 253e9),
    (1e23, 28.4e9, 588e9, 26.9e9, 620e9, 18.9e9, 880e9),
    (5.76e23, 67.8e9, 1.42e12, 63.4e9, 1.51e12, 42.3e9, 2.27e12),
    (1e24, 89.3e9, 1.87e12, 83.1e9, 2.01e12, 54.4e9, 3.06e12),
]


@pytest.mark.parametrize("row", FRONTIER, ids=lambda row: f"{row[0]:.3g}")
def test_frontier_by_budget(row: tuple[float, ...]) -> None:
    flops, *numbers = row
    for law, size, tokens in zip(FRONTIER_TABLES, numbers[::2], numbers[1::2], strict=True):
        found = table_frontier(law).allocate(flops)
        assert found.num_parameters == pytest.approx(size, rel=0.03)
        assert found.num_tokens == pytest.approx(tokens, rel=0.03)
        assert silent(flops, law).num_parameters == found.num_parameters


@pytest.mark.parametrize(
    ("flops", "size", "tokens", "ratio"),
    [(1e18, 80.5e6, 2.07e9, 25.7), (1e19, 262e6, 6.36e9, 24.2), (1e20, 853e6, 19.5e9, 22.9),
     (1e21, 2.78e9, 60.0e9, 21.6), (1e22, 9.05e9, 184e9, 20.4), (1e23, 29.4e9, 566e9, 19.2),
     (5.76e23, 72.2e9, 1.33e12, 18.4), (1e24, 95.9e9, 1.74e12, 18.1)],
)  # fmt: skip
def test_frontier_of_epoch(flops: float, size: float, tokens: float, ratio: float) -> None:
    found = silent(flops, "epoch")
    assert found.num_parameters == pytest.approx(size, rel=0.005)
    assert found.num_tokens == pytest.approx(tokens, rel=0.005)
    assert found.tokens_per_parameter == pytest.approx(ratio, abs=0.06)


# The parametric law


def test_parametric_constants_with_all_digits_round_to_the_printed_ones() -> None:
    assert pytest.approx(1.69337, abs=1e-5) == CHINCHILLA.E
    for name in ("E", "A", "B", "alpha", "beta"):
        printed = getattr(CHINCHILLA_ROUNDED, name)
        assert getattr(CHINCHILLA, name) == pytest.approx(printed, abs={"A": 0.06, "B": 0.06}.get(name, 0.005))


@pytest.mark.parametrize(
    ("law", "a", "scale"), [("rounded", 0.4516, 1.34471), ("full", 0.4565, 1.30005), ("epoch", 0.5126, 0.11963)]
)
def test_parametric_closed_form(law: str, a: float, scale: float) -> None:
    assert LAWS[law].a == pytest.approx(a, abs=5e-5)
    assert pytest.approx(scale, rel=1e-4) == LAWS[law].G
    assert LAWS[law].a + LAWS[law].b == pytest.approx(1)


@pytest.mark.parametrize(
    ("law", "size", "tokens", "ratio"),
    [("rounded", 32.2e9, 2.98e12, 92.6), ("full", 40.4e9, 2.38e12, 58.9), ("epoch", 72.2e9, 1.33e12, 18.4)],
)
def test_trap_rounded_constants_do_not_give_twenty_tokens_per_parameter(law, size, tokens, ratio) -> None:
    found = LAWS[law].allocate(GOPHER_FLOPS)
    assert found.num_parameters == pytest.approx(size, rel=0.003)
    assert found.num_tokens == pytest.approx(tokens, rel=0.005)
    assert found.tokens_per_parameter == pytest.approx(ratio, abs=0.06)


@pytest.mark.parametrize(("law", "low", "high"), [("rounded", 0.57, 1.22), ("full", 0.06, 0.19)])
def test_trap_neither_set_of_constants_reproduces_table_a3(law: str, low: float, high: float) -> None:
    """The tokens for which a size is best are off by so much, in every row."""
    excess = []
    for row in FRONTIER_TABLES["chinchilla-3-table"]:
        found = LAWS[law]
        product = (row.num_parameters / found.G) ** (1 / found.a)  # C / 6 at which this size is best
        excess.append(product / row.num_parameters / row.num_tokens - 1)
    assert min(excess) == pytest.approx(low, abs=0.01)
    assert max(excess) == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(
    ("size", "tokens", "rounded", "epoch"),
    [(175e9, 300e9, 2.0023, 2.0085), (280e9, 300e9, 1.9933, 1.9996), (70e9, 1.4e12, 1.9366, 1.9739),
     (8e9, 15e12, 1.9485, 2.0221), (405e9, 15.6e12, 1.8190, 1.8926), (7e9, 2e12, 2.0203, 2.0647)],
    ids=["gpt-3", "gopher", "chinchilla", "llama-3-8b", "llama-3-405b", "llama-2-7b"],
)  # fmt: skip
def test_parametric_losses_of_published_models(size: float, tokens: float, rounded: float, epoch: float) -> None:
    assert CHINCHILLA_ROUNDED.loss(size, tokens) == pytest.approx(rounded, abs=1e-3)
    assert EPOCH.loss(size, tokens) == pytest.approx(epoch, abs=1e-3)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("flops", [3e18, 5.76e23])
def test_parametric_optimum_is_the_lowest_point_of_a_fine_grid(law: str, flops: float) -> None:
    """An independent oracle: no formula, 200,001 sizes."""
    sizes = np.geomspace(1e6, 1e14, 200_001)
    losses = LAWS[law].loss(sizes, flops / 6 / sizes)
    found = LAWS[law].allocate(flops)
    assert found.num_parameters == pytest.approx(sizes[losses.argmin()], rel=2e-4)
    assert found.loss == pytest.approx(losses.min(), abs=1e-9)
    assert training_flops(found.num_parameters, found.num_tokens) == pytest.approx(flops)


def test_parametric_worked_by_hand() -> None:
    """E=1, A=B=10, α=β=1/2: at C=6e6 sizes and tokens are 1000 each, and the loss is 1 + 2 × 10 / sqrt(1000)."""
    law = ParametricLaw(1.0, 10.0, 10.0, 0.5, 0.5)
    found = law.optimal(6e6)
    assert (found.num_parameters, found.num_tokens) == (pytest.approx(1000), pytest.approx(1000))
    assert found.loss == pytest.approx(1.6324555)
    assert law.flops_for_loss(found.loss) == pytest.approx(6e6)
    assert law.tokens_for_loss(1000, found.loss) == pytest.approx(1000)
    assert law.tokens_for_loss(10, 1.5) == math.inf


# Models


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("GPT-3", 1.714), ("Gopher", 1.07), ("Chinchilla", 20.0), ("Llama 1 7B", 143), ("Llama 2 7B", 286),
     ("Llama 2 70B", 29), ("Llama 3 8B", 1875), ("Llama 3 70B", 214), ("Llama 3.1 405B", 38.5)],
)  # fmt: skip
def test_published_models_tokens_per_parameter(name: str, ratio: float) -> None:
    assert published_model(name).tokens_per_parameter == pytest.approx(ratio, rel=0.015)


def test_published_models_are_complete_and_in_order() -> None:
    assert [model.year for model in PUBLISHED_MODELS] == sorted(model.year for model in PUBLISHED_MODELS)
    assert len({model.name for model in PUBLISHED_MODELS}) == len(PUBLISHED_MODELS) == 9


def test_compute_of_published_models() -> None:
    assert training_flops(174.6e9, 300e9) == pytest.approx(3.14e23, rel=1e-3)
    assert training_flops(174.6e9, 300e9) / PF_DAY_FLOPS == pytest.approx(3640, rel=1e-3)
    assert published_model("Chinchilla").flops == pytest.approx(5.88e23)
    assert published_model("Llama 3.1 405B").flops == pytest.approx(3.79e25, rel=1e-3)


def test_trap_gophers_published_compute_is_not_6_n_d() -> None:
    assert published_model("Gopher").flops == pytest.approx(5.04e23)
    assert GOPHER_FLOPS == 5.76e23


# Bad input, and what is said about extrapolation


@pytest.mark.parametrize("law", ["kaplan", "chinchilla-1", "chinchilla-2", "chinchilla-3", "epoch", EPOCH])
def test_extrapolation_warns_beyond_the_fitted_runs(law) -> None:
    with pytest.warns(ExtrapolationWarning, match="times above the runs"):
        optimal_allocation(1e24, law)
    with pytest.warns(ExtrapolationWarning, match="times below the runs"):
        optimal_allocation(1e9, law)


def test_no_warning_within_the_fitted_runs() -> None:
    """Warnings are errors here."""
    for law in ("chinchilla-1", "chinchilla-2", "chinchilla-3", "epoch"):
        assert optimal_allocation(1e20, law).flops == 1e20
    assert optimal_allocation(1e20, "kaplan").num_parameters > 0
    assert ParametricLaw(1.7, 400, 400, 0.3, 0.3).optimal(1e30).flops == 1e30  # it was fitted to nothing


def test_compare_laws_warns_once_and_names_those_that_extrapolate() -> None:
    with pytest.warns(ExtrapolationWarning, match="kaplan, chinchilla-1") as caught:
        found = compare_laws(GOPHER_FLOPS)
    assert len(caught) == 1
    ratios = {law: round(allocation.tokens_per_parameter, 1) for law, allocation in found.items()}
    assert ratios == {
        "kaplan": 0.4, "chinchilla-1": 20.9, "chinchilla-2": 23.9, "chinchilla-3": 58.9, "chinchilla-3-table": 53.8,
        "epoch": 18.4,
    }  # fmt: skip


@pytest.mark.parametrize("flops", [0, -1.0, math.inf, math.nan])
def test_budget_that_is_not_positive_is_refused(flops: float) -> None:
    with pytest.raises(ValueError, match="flops must be a positive, finite number"):
        optimal_allocation(flops)


def test_unknown_law_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="law must be one of kaplan, chinchilla-1"):
        optimal_allocation(1e20, "chinchila")
    with pytest.raises(TypeError, match="a ParametricLaw or a fit"):
        optimal_allocation(1e20, 3)
    with pytest.raises(TypeError, match="flops must be a number, got '1e20'"):
        optimal_allocation("1e20")
    with pytest.raises(ValueError, match="approach must be one of chinchilla-1"):
        table_frontier("kaplan")
    with pytest.raises(ValueError, match="unknown model 'Gemini'; known: GPT-3"):
        published_model("Gemini")


def test_law_refuses_constants_and_sizes_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match="beta must be a positive"):
        ParametricLaw(1.7, 400, 400, 0.3, -0.3)
    with pytest.raises(ValueError, match="num_tokens must be positive"):
        EPOCH.loss(1e9, 0)
    with pytest.raises(ValueError, match=r"loss must be above E = 1\.817"):
        EPOCH.flops_for_loss(1.8)
    with pytest.raises(ValueError, match="needs a positive number"):
        kaplan.LOSS_BY_TOKENS(0)


def test_run_computes_its_flops_and_refuses_what_is_not_positive() -> None:
    run = Run(num_parameters=1e6, num_tokens=2e7, loss=3.0)
    assert run.flops == pytest.approx(1.2e14)
    assert [column.tolist() for column in columns([run])] == [[1e6], [2e7], [3.0]]
    with pytest.raises(ValueError, match="loss must be a positive"):
        Run(num_parameters=1e6, num_tokens=2e7, loss=math.nan)
