"""The course's own models: the recipe, end to end on a few steps, and the weights that are in the package."""

import json

import pytest
import torch

from cme295lab.pretraining.course_model import (
    HELD_OUT_SEED,
    course_recipe,
    held_out_loss,
    initialize_for_width,
    main,
    save_course_model,
    train_course_model,
)
from cme295lab.transformer import DecoderLM, load_pretrained
from cme295lab.transformer.decoding import generate
from cme295lab.transformer.presets import preset
from cme295lab.transformer.pretrained.registry import COURSE


@pytest.fixture(scope="module", params=["course-4m", "course-draft"])
def shipped(request):
    report = json.loads((COURSE[request.param].folder / "training.json").read_text())
    return load_pretrained(request.param), report


def test_shipped_weights_reach_the_loss_that_they_are_said_to_have(shipped):
    pretrained, report = shipped
    assert report["held_out_stories"]["seed"] == HELD_OUT_SEED
    # Stories are generated; their wording may have changed since.
    stored = report["held_out_stories"]["loss"]
    assert held_out_loss(pretrained.model, pretrained.tokenizer) == pytest.approx(stored, abs=0.3)
    assert report["losses"]["stories"] == pytest.approx(stored, abs=0.3)
    assert pretrained.model.config.num_parameters == report["num_parameters"] == preset(pretrained.name).num_parameters


def test_shipped_weights_say_something_that_looks_like_text(shipped):
    pretrained, _ = shipped
    prompt = pretrained.tokenizer.encode("def __init__(self")
    said = pretrained.tokenizer.decode(
        generate(pretrained.model, [prompt], max_new_tokens=12, end_token=pretrained.tokenizer.end_token).tokens[0]
    )
    assert "self" in said
    assert any(sign in said for sign in "():,=")


def test_both_models_have_one_vocabulary_and_the_larger_knows_more():
    large, small = load_pretrained("course-4m"), load_pretrained("course-draft")
    assert large.tokenizer == small.tokenizer
    assert held_out_loss(large.model, large.tokenizer) < held_out_loss(small.model, small.tokenizer)


def test_starting_weights_have_the_width_they_are_for_and_their_own_seed():
    model = DecoderLM(preset("course-draft"))
    torch.manual_seed(4)
    initialize_for_width(model, 1)
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(4)).item()
    block = model.layers[0]
    assert model.embedding.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert block.mlp.gate.weight.std().item() == pytest.approx(64**-0.5, rel=0.03)
    assert block.mlp.down.weight.std().item() == pytest.approx((4 * 176) ** -0.5, rel=0.03)
    assert torch.equal(initialize_for_width(DecoderLM(preset("course-draft")), 1).head.weight, model.head.weight)


def test_a_few_steps_from_the_corpus_to_a_folder_that_loads(tmp_path):
    tokenizer = load_pretrained("course-draft").tokenizer
    trained = train_course_model("course-draft", num_steps=20, profile="fast", tokenizer=tokenizer, progress=False)
    assert trained.run.losses[-1] < trained.run.losses[0] - 0.5
    report = save_course_model(trained, tmp_path / "out")
    loaded = load_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == json.loads(json.dumps(report))
    assert set(report["losses"]) == {"english", "code", "arithmetic", "stories"}
    assert report["num_tokens"] == 20 * 1024
    for one, two in zip(loaded.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(one, two.bfloat16().float())


def test_unknown_names_and_runs_too_short_are_refused():
    with pytest.raises(ValueError, match="no recipe for 'course-9m'; there is one for course-4m and course-draft"):
        course_recipe("course-9m")
    with pytest.raises(ValueError, match="num_steps must be at least 20"):
        main(["--name", "course-draft", "--num-steps", "3"])
