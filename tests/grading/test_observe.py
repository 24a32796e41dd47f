"""Functions that students hand over in unusual ways."""

from cme295lab.grading import checks
from cme295lab.grading.observe import is_stub
from cme295lab.grading.result import Kind

UPDATE = """def update(scale, clean_steps, found_inf, growth_interval):
    if found_inf:
        return scale / 2, 0
    return (scale * 2, 0) if clean_steps + 1 == growth_interval else (scale, clean_steps + 1)
"""


def typed_without_a_file(source: str, name: str):
    names: dict = {}
    exec(source, names)
    return names[name]


def test_function_without_source_is_judged_by_what_it_does() -> None:
    assert checks.run("loss_scaling/2", typed_without_a_file(UPDATE, "update")).passed
    wrong = typed_without_a_file(UPDATE.replace("scale / 2", "scale"), "update")
    assert checks.run("loss_scaling/2", wrong).kind is Kind.WRONG_VALUE


def test_stub_is_known_by_its_source() -> None:
    def stub() -> None:
        raise NotImplementedError()

    assert is_stub(stub)
    assert not is_stub(typed_without_a_file(UPDATE, "update"))
