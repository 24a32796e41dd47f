"""A trace as one report: the numbers are those of the trace, in text, HTML and JSON; nothing in it breaks a page."""

import json
import re
from xml.etree import ElementTree

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.attention import flash_attention
from cme295lab.simulator.records import Launch
from cme295lab.units import format_bytes, format_flops

HTML_LIMIT_BYTES = 200_000


@triton.jit
def scale_kernel(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane * stride, mask=lane < n)  # <b>&"quotes"</b>
    tl.store(y_ptr + lane, square(x), mask=lane < n)


@triton.jit
def square(x):
    return x * x


@triton.jit
def race_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), tl.program_id(0))


def launch_scale(stride=1, times=1, n=4096, **options):
    x, y = torch.randn(n * stride), torch.empty(n)
    with simulator.trace(device="A100", **options) as t:
        for _ in range(times):
            scale_kernel[triton.cdiv(n, 1024),](x, y, n, stride, BLOCK=1024)
    return t


@pytest.fixture(scope="module")
def attention():
    """A trace of a forward and a backward pass."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 256, 64).half().requires_grad_() for _ in range(3))
    with simulator.trace(device="H100") as t:
        flash_attention(q, k, v, causal=True).float().sum().backward()
    return t


def test_totals_are_those_of_the_trace(attention):
    facts = attention.report(compile=False).to_dict()
    traffic = facts["traffic"]
    assert traffic["requested_bytes"] == attention.requested_bytes
    assert traffic["requested_read_bytes"] == attention.read_bytes
    assert traffic["l2_bytes"] == attention.sector_bytes
    assert traffic["l2_hit_bytes"] == attention.l2_hit_bytes
    assert traffic["dram_bytes"] == attention.dram_bytes
    assert traffic["dram_read_bytes"] == attention.dram_read_bytes
    assert traffic["distinct_bytes"] == attention.distinct_bytes
    assert facts["sram_peak_bytes"] == attention.sram_peak_bytes
    assert facts["num_launches"] == len(attention.launches) == len(facts["kernels"])
    roofline = attention.roofline()
    assert facts["roofline"]["time_s"] == roofline.time_s
    assert facts["roofline"]["bound"] == roofline.bound
    assert facts["roofline"]["flops"] == attention.flops


def test_each_kernel_is_a_section_with_the_numbers_of_its_launch(attention):
    report = attention.report(compile=False)
    for launch, facts in zip(attention.launches, report.to_dict()["kernels"], strict=True):
        assert facts["kernel"] == launch.kernel
        assert facts["grid"] == list(launch.grid)
        assert facts["dot_flops"] == launch.dot_flops
        assert facts["sram_peak_bytes"] == launch.sram_peak_bytes
        for found in facts["tensors"]:
            tensor = launch.tensors[found["name"]]
            assert found["shape"] == list(tensor.shape)
            assert found["traffic"]["requested_read_bytes"] == tensor.read_bytes
            assert found["traffic"]["requested_written_bytes"] == tensor.written_bytes
            assert found["traffic"]["l2_bytes"] == tensor.sector_bytes
            assert found["traffic"]["dram_bytes"] == tensor.dram_bytes
            assert found["traffic"]["distinct_bytes"] == tensor.distinct_bytes
        assert {x["line"]: x["sram_bytes"] for x in facts["lines"] if x["sram_bytes"]} == {
            n: b for n, b in launch.sram_by_line.items() if b
        }
        moved = sum(a.moved_bytes for a in launch.accesses)
        assert sum(x["moved_bytes"] for x in facts["lines"]) == moved
        assert facts["other_accesses"] == []


def test_text_and_html_show_these_numbers(attention):
    report = attention.report(compile=False)
    text, page = str(report), report.html()
    for launch in attention.launches:
        assert launch.kernel in text
        assert launch.kernel in page
        shown = [format_flops(launch.dot_flops), format_bytes(launch.sram_peak_bytes, binary=True)]
        shown += [format_bytes(n) for t in launch.tensors.values() for n in (t.sector_bytes, t.dram_read_bytes)]
        for number in shown:
            assert number in text
            assert number in page
    assert format_bytes(attention.dram_bytes) in text.splitlines()[0]
    assert format_bytes(attention.dram_bytes) in page
    assert str(attention.roofline()) in text


def test_the_html_stands_alone(attention):
    page = attention.report()._repr_html_()
    assert len(page.encode()) < HTML_LIMIT_BYTES
    for foreign in ("<script", "<link", "@import", "url(", "src=", "href=", "<style"):
        assert foreign not in page
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    kernels = len(attention.launches)
    assert len(pictures) == 3 * kernels + 1  # hierarchy, roofline, on-chip bytes of each; the roofline of all
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 40
    assert not re.search(r"(?<![-\w])(color|fill|background):\s*(black|white)", page)


@pytest.mark.needs_triton
def test_code_is_there_on_request():
    report = launch_scale().report()
    assert "SASS" not in report.html()
    assert "<summary>SASS" in report.html(code=True)
    assert "ld.global" in report.html(code=True)


def test_text_of_the_source_is_escaped():
    report = launch_scale().report(compile=False)
    assert '<b>&"quotes"' not in report.html()
    assert "&lt;b&gt;&amp;&quot;quotes&quot;" in report.html()
    assert '<b>&"quotes"' in str(report)


def test_an_empty_trace():
    with simulator.trace(device="A100") as t:
        pass
    report = t.report()
    assert str(report) == "empty trace (A100-80GB-SXM): nothing was launched"
    assert report.html() == "<p>empty trace (A100-80GB-SXM): nothing was launched</p>"
    assert json.loads(report.to_json())["kernels"] == []


def test_launches_that_are_alike_are_summed():
    one, three = launch_scale().report(compile=False), launch_scale(times=3).report(compile=False)
    (single,), (summed,) = one.to_dict()["kernels"], three.to_dict()["kernels"]
    assert (single["num_launches"], summed["num_launches"]) == (1, 3)
    for name, value in single["traffic"].items():
        assert summed["traffic"][name] == 3 * value
    assert summed["flops"] == 3 * single["flops"]
    assert summed["sram_peak_bytes"] == single["sram_peak_bytes"]
    assert summed["roofline"]["time_s"] == pytest.approx(3 * single["roofline"]["time_s"])
    assert [x["sram_bytes"] for x in summed["lines"]] == [x["sram_bytes"] for x in single["lines"]]
    assert [x["moved_bytes"] for x in summed["lines"]] == [3 * x["moved_bytes"] for x in single["lines"]]
    assert "3 launches summed" in str(three)


def test_launches_with_other_constants_or_grids_are_apart():
    x, y = torch.randn(4096), torch.empty(4096)
    with simulator.trace() as t:
        scale_kernel[4,](x, y, 4096, 1, BLOCK=1024)
        scale_kernel[8,](x, y, 4096, 1, BLOCK=512)
        scale_kernel[2,](x, y, 2048, 1, BLOCK=1024)
    assert [k["constants"] for k in t.report(compile=False).to_dict()["kernels"]] == [
        {"BLOCK": "1024"}, {"BLOCK": "512"}, {"BLOCK": "1024"}
    ]  # fmt: skip


def test_lines_of_functions_that_are_called_are_shown():
    (kernel,) = launch_scale().report(compile=False).to_dict()["kernels"]
    assert {x["function"] for x in kernel["lines"]} == {"scale_kernel", "square"}
    (product,) = (x for x in kernel["lines"] if "return x * x" in x["text"])
    assert product["sram_bytes"] == 12288  # x, x * x, and the lanes that the store needs: 4 bytes each


def test_sector_efficiency_by_line():
    wide = launch_scale(stride=8).report(compile=False)
    (load,) = (x for x in wide.to_dict()["kernels"][0]["lines"] if "tl.load" in x["text"])
    assert load["requested_bytes"] == 4 * 4096
    assert load["moved_bytes"] == 32 * 4096
    assert load["sector_efficiency"] == 1 / 8
    assert "12.5 %" in str(wide)
    assert re.search(r"<b style='border-bottom[^>]*>\s*12.5 %</b>", wide.html())
    assert "border-bottom:2px" not in launch_scale().report(compile=False).html()


@pytest.mark.needs_triton
def test_compile_facts():
    report = launch_scale(stride=8).report()
    compiled = report.to_dict()["kernels"][0]["compile"]
    expected = simulator.compile_report(
        scale_kernel, torch.empty(1 << 15), torch.empty(4096), 4096, 8, device="A100", BLOCK=1024
    ).to_dict()
    assert compiled == expected
    assert "narrow: loads of 4 B per thread" in str(report)
    assert "narrow: loads of 4 B per thread" in report.html()
    (load,) = (x for x in report.to_dict()["kernels"][0]["lines"] if "tl.load" in x["text"])
    assert load["compiled"] == {"load 4 B": 8}
    assert "8 × load 4 B" in report.html()


def test_without_the_compiler():
    without = launch_scale().report(compile=False)
    assert without.to_dict()["kernels"][0]["compile"] is None
    assert "not compiled: asked for without" in str(without)
    assert "not compiled: asked for without" in without.html()


def test_a_kernel_that_cannot_be_compiled_is_reported_all_the_same(monkeypatch):
    def refuse(*_, **__):
        raise simulator.SimulatorError("Triton is not installed <here>")

    monkeypatch.setattr(Launch, "compile_report", refuse)
    report = launch_scale().report()
    assert "not compiled: Triton is not installed <here>" in str(report)
    assert "not compiled: Triton is not installed &lt;here&gt;" in report.html()
    assert report.to_dict()["kernels"][0]["compile_note"] == "not compiled: Triton is not installed <here>"


def test_another_device():
    t = launch_scale()
    report = t.report(device="H100", compile=False).to_dict()
    assert report["device"]["name"] == "H100-SXM5"
    assert report["roofline"]["time_s"] == t.launches[0].roofline("H100").time_s
    assert report["roofline"]["time_s"] != t.roofline().time_s
    with pytest.raises(ValueError, match="H1OO"):
        t.report(device="H1OO")


def test_the_cache_model_is_that_of_the_other_device():
    t = launch_scale(n=1024 * 700)
    assert t.report(compile=False).to_dict()["kernels"][0]["programs_at_a_time"] == 700  # all of them, on 108 SMs
    small = t.report(device="T4", compile=False).to_dict()["kernels"][0]
    assert small["programs_at_a_time"] == t.launches[0].cache("T4").num_slots < 700


def test_problems():
    x = torch.zeros(64, dtype=torch.int32)
    with simulator.trace(check=True) as t:
        race_kernel[2,](x, BLOCK=64)
    report = t.report(compile=False)
    assert len(t.problems) == 1
    (found,) = report.to_dict()["problems"]
    assert (found["kind"], found["kernel"], found["tensor"]) == ("race", "race_kernel", "x")
    assert found["message"] == t.problems[0].message
    assert "1 problem\n" in str(report)
    assert t.problems[0].message in str(report)
    assert "<b>1 problem</b>" in report.html()
    clean = launch_scale(check=True).report(compile=False)
    assert clean.to_dict()["problems"] == []
    assert "no problems found" in str(clean)
    assert "No problems found" in clean.html()
    assert launch_scale().report(compile=False).to_dict()["problems"] is None  # nobody looked


def test_json_is_plain_and_its_keys_are_stable(attention):
    facts = json.loads(attention.report(compile=False).to_json())
    assert list(facts) == ["device", "num_launches", "traffic", "sram_peak_bytes", "roofline", "kernels", "problems"]
    assert {"kernel", "grid", "traffic", "tensors", "roofline", "lines", "compile", "compile_note"} <= set(
        facts["kernels"][0]
    )
    assert set(facts["traffic"]) == {
        "requested_read_bytes", "requested_written_bytes", "l2_read_bytes", "l2_written_bytes", "l2_hit_bytes",
        "dram_read_bytes", "dram_written_bytes", "distinct_bytes", "requested_bytes", "l2_bytes", "dram_bytes",
    }  # fmt: skip


def test_a_kernel_without_arithmetic():
    x = torch.zeros(64, dtype=torch.int32)
    with simulator.trace() as t:
        race_kernel[1,](x, BLOCK=64)
    report = t.report(compile=False)
    assert report.html().count("<svg") == 2  # no roofline: there is no point to draw
    assert json.loads(report.to_json())["roofline"]["intensity"] == 0
