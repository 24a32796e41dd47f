"""Each kind of generated conversation against what its question asks for."""

import functools
import random
import re
from fractions import Fraction

import pytest

from cme295lab.finetuning.instructions import KINDS, advice, arithmetic, code, explanations, poems, safety, stories
from cme295lab.finetuning.instructions.drafts import AFTER, BEFORE, SYSTEM, WORLDS, sentences, with_article
from cme295lab.finetuning.instructions.generate import WRITERS
from cme295lab.finetuning.instructions.knowledge import TOPICS
from cme295lab.pretraining.corpora import story_words

NUM_DRAFTS = 300


@functools.cache
def drafts(kind, number=NUM_DRAFTS):
    rng = random.Random(f"test {kind}")
    return [(world, WRITERS[kind](rng, world)) for world in WORLDS for _ in range(number)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_has_questions_and_answers_and_no_slot_is_left(kind):
    for _, draft in drafts(kind):
        assert len(draft.turns) % 2 == 0
        assert len(draft.turns) <= 6
        assert all(turn == turn.strip() and turn for turn in draft.turns)
        assert draft.family.startswith(f"{kind}#")
        if kind != "code":
            assert not re.search(r"[{}]|\ba [aeiou](?!ne\b|u)|\bNone\b", "\n".join(draft.turns)), draft.turns


@pytest.mark.parametrize("kind", KINDS)
def test_some_drafts_have_several_turns(kind):
    share = sum(len(draft.turns) > 2 for _, draft in drafts(kind)) / (2 * NUM_DRAFTS)
    assert 0.1 < share < 0.5


def test_the_worlds_share_no_phrasing():
    """Nor words, where the kinds have lists of them."""
    tables = [
        BEFORE, AFTER, SYSTEM, arithmetic.NAMES, arithmetic.THINGS, arithmetic.EXTRAS, arithmetic.PLAIN,
        arithmetic.FOLLOW_UPS, stories.OPENINGS, stories.REQUESTS, poems.TOPICS, poems.FIRST_COUPLETS, poems.COUPLETS,
        poems.NAMES, poems.REQUESTS, poems.ACROSTICS, poems.FOLLOW_UPS, code.WHICH, code.EACH, code.RESULT, code.OTHERS,
        code.REQUESTS, explanations.COMPARISONS, TOPICS, safety.HARMS, safety.REQUESTS, safety.INSISTING,
        safety.HARMLESS, advice.QUESTIONS,
        *(problem.questions for problem in arithmetic.PROBLEMS),
        *({w: [q for asked in table[w].values() for q in asked] for w in WORLDS}
          for table in (explanations.QUESTIONS, explanations.FOLLOW_UPS, code.FOLLOW_UPS, stories.FOLLOW_UPS,
                        advice.THINGS, stories.WORDS)),
    ]  # fmt: skip
    for table in tables:
        usual, shifted = ({item for item in table[world] if item != ""} for world in WORLDS)
        assert usual
        assert shifted
        assert usual.isdisjoint(shifted)


FORMULAS = {
    "buying": lambda a, b, c: a * b + c,
    "giving": lambda a, b, c: a + b - c,
    "sharing": lambda a, b: Fraction(a, b),
    "seats": lambda a, b, c: a * b - c,
    "walking": lambda a, b: a * b,
    "comparing": lambda a, b: a + (a + b),
    "boxes": lambda a, b, c: Fraction(a * b, c),
    "change": lambda a, b, c: a - b - c,
}


def test_answers_to_word_problems_follow_from_the_numbers_of_the_question():
    """The formulas here are those of the test; the numbers are read from the question."""
    seen = set()
    for world, draft in drafts("arithmetic"):
        if name := draft.facts["problem"]:
            numbers = map(int, re.findall(r"\d+", draft.turns[0]))
            expected = FORMULAS[name](*numbers)
            assert re.search(r"The answer is (\d+)( [a-z ]+)?\.$", draft.turns[1])[1] == str(expected), draft.turns
            seen.add((world, name))
    assert len(seen) == 2 * len(FORMULAS)


def test_answers_to_plain_sums_are_right():
    seen = set()
    for _, draft in drafts("arithmetic"):
        if not draft.facts["problem"]:
            a, sign, b = re.search(r"(\d+) ([-+*]) (\d+)", draft.turns[0]).groups()
            expected = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert draft.turns[1].endswith(f"The answer is {expected}.")
            seen.add(sign)
    assert seen == {"+", "-", "*"}


def test_every_step_of_every_sum_holds():
    """All equations of all answers, also to second questions; there is one at least in each answer."""
    for _, draft in drafts("arithmetic"):
        for answer in draft.turns[1::2]:
            equations = re.findall(r"(\d[\d +*/-]*?) = (\d[\d +*/-]*)", answer)
            assert equations, answer
            for left, right in equations:
                assert value(left) == value(right), (left, right)


def value(text):
    """Of sums of products of whole numbers, from left to right."""
    total = Fraction(0)
    for sign, product in re.findall(r"(^|[+-]) ?([\d */]+)", text.strip()):
        first, *rest = re.findall(r"[*/]?\s*\d+", product)
        result = Fraction(first)
        for factor in rest:
            number = Fraction(factor[1:].strip())
            result = result * number if factor[0] == "*" else result / number
        total += -result if sign == "-" else result
    return total


def test_value_by_hand():
    assert value("2 + 3 * 4 - 12 / 6") == 12
    assert value("7") == 7


def test_a_second_sum_goes_on_from_the_first():
    asked = [draft for _, draft in drafts("arithmetic") if len(draft.turns) == 4]
    assert len(asked) > 50
    for draft in asked:
        more = int(re.search(r"\d+", draft.turns[2])[0])
        assert draft.turns[3].endswith(f"The answer is {int(draft.facts['result']) + more}.")


def test_shifted_numbers_are_larger():
    largest = {
        world: [max(map(int, re.findall(r"\d+", draft.turns[0]))) for w, draft in drafts("arithmetic") if w == world]
        for world in WORLDS
    }
    assert sum(largest["shifted"]) / NUM_DRAFTS > 2 * sum(largest["usual"]) / NUM_DRAFTS


def test_functions_do_what_their_asserts_say():
    """Each answer is run as it stands; a further assert runs after the function it is about."""
    names, num_asserts = set(), 0
    for _, draft in drafts("code"):
        names.add(draft.facts["name"])
        space = {}
        for answer in draft.turns[1::2]:
            source = re.fullmatch(r"```python\n(.*)\n```", answer, re.DOTALL)[1]
            exec(compile(source, draft.family, "exec"), space)
            num_asserts += len(re.findall(r"^assert ", source, re.MULTILINE))
        assert callable(space[draft.facts["name"]])
    assert len(names) > 150
    assert num_asserts > 1200


def test_loops_and_one_line_functions_agree():
    compared = 0
    rng = random.Random(0)
    for _, draft in drafts("code"):
        if len(draft.turns) == 4 and "for " in draft.turns[3] and "def " in draft.turns[3]:
            space, other = {}, {}
            exec(draft.turns[1][10:-3], space)
            exec(draft.turns[3][10:-3], other)
            for _ in range(5):
                values = [rng.randrange(-40, 80) for _ in range(rng.randrange(8))]
                assert space[draft.facts["name"]](values) == other[draft.facts["name"]](values)
                compared += 1
    assert compared > 50


def test_function_names_hide_nothing_of_python():
    import builtins
    import keyword

    names = {draft.facts["name"] for _, draft in drafts("code")}
    assert all(name.isidentifier() and not keyword.iskeyword(name) and not hasattr(builtins, name) for name in names)


def test_stories_have_in_them_what_was_asked_for():
    seen = set()
    for _, draft in drafts("story"):
        wanted = [word for word in draft.facts["wanted"].split(",") if word]
        assert all(word in draft.turns[0] and word in draft.turns[1] for word in wanted), draft.turns
        seen |= set(wanted)
    assert len(seen) > 80
    assert "teddy bear" not in seen
    assert "teddy bear" in story_words.THINGS


def test_story_sentences_begin_with_a_capital():
    for _, draft in drafts("story"):
        assert not re.search(r"(^|[a-z]\. |\n)[a-z]", draft.turns[1]), draft.turns[1]


RHYMES = [
    "day play away", "long song", "do through too", "new you", "light bright night",
    "near year dear hear", "seen green",
    "now how", "wall small", "leave sleeve", "go flows flow snow grow", "sky by", "cold gold", "street feet",
    "good could",
    "shine mine", "done sun", "room bloom", "tree me tea sea key", "sing bring", "time rhyme", "deep asleep",
    "understand grand", "blinks thinks", "wide guide", "door more", "two do",
]  # fmt: skip


def test_lines_rhyme_in_pairs_and_are_as_many_as_asked_for():
    rhymes = [set(line.split()) for line in RHYMES]
    for _, draft in drafts("poem"):
        if "spells" in draft.facts:
            continue
        lines = [line for answer in draft.turns[1::2] for line in answer.splitlines()]
        ends = [re.search(r"(\w+)\W*$", line)[1].lower() for line in lines]
        for one, other in zip(ends[::2], ends[1::2]):
            assert one != other
            assert any({one, other} <= group for group in rhymes)
        first = draft.turns[1].splitlines()
        assert len(first) == int(draft.facts["num_lines"])
        for word, number in (("four", 4), ("six", 6)):
            assert f"{word} " not in draft.turns[0] or len(first) == number
        assert draft.facts["topic"] in draft.turns[0]
        assert draft.facts["topic"] in draft.turns[1].lower()
        assert len(set(lines)) == len(lines)


def test_acrostics_spell_their_word():
    spelt = set()
    for _, draft in drafts("poem"):
        if word := draft.facts.get("spells"):
            lines = draft.turns[1].splitlines()
            assert "".join(line[0] for line in lines).lower() == word
            assert word in draft.turns[0].lower()
            assert len(set(lines)) == len(lines)
            spelt.add(word)
    assert len(spelt) > 40


def test_explanations_say_what_was_asked_for():
    table = {topic.name: topic for topics in TOPICS.values() for topic in topics}
    assert len(table) == sum(map(len, TOPICS.values()))
    for _, draft in drafts("explanation"):
        for name in draft.facts["topic"].split(" and "):
            assert name in draft.turns[0]
            for part in draft.facts["parts"].split(","):
                assert sum(sentence in draft.turns[1] for sentence in getattr(table[name], part)) == 1
        answers = draft.turns[1::2]
        assert len(set(answers)) == len(answers)


def test_what_something_is_begins_with_its_name():
    for topics in TOPICS.values():
        for topic in topics:
            assert all(sentence.lower().startswith(f"{topic.name} is ") for sentence in topic.what), topic


def test_each_thing_has_advice_for_each_appliance():
    materials = {material for world in WORLDS for material in advice.THINGS[world]}
    appliances = {appliance for world in WORLDS for appliance in advice.APPLIANCES[world]}
    assert set(advice.VERDICTS) == {(material, appliance) for material in materials for appliance in appliances}
    assert "teddy bear" not in str(advice.THINGS)
    allowed = {case for case, (verdict, _, _) in advice.VERDICTS.items() if verdict == "yes"}
    assert allowed == {("cotton", "washing machine"), ("cotton", "tumble dryer")}


SAYS = {"yes": ("Yes",), "no": ("No",), "check": ("It depends", "Perhaps")}


def test_advice_and_refusals_say_so_at_once():
    seen = set()
    for _, draft in drafts("safety"):
        verdict, answer = draft.facts["verdict"], draft.turns[1]
        seen.add(verdict)
        if verdict in SAYS:
            assert answer.startswith(SAYS[verdict])
            assert draft.facts["thing"] in draft.turns[0].lower()
        elif verdict == "refused":
            assert re.match(r"I cannot|I am sorry, but no|I would rather not|No, ", answer)
            assert draft.facts["reason"] in answer
            assert answer.index(draft.facts["reason"]) + len(draft.facts["reason"]) < len(answer) - 15  # an alternative
        else:
            assert not re.match(r"I cannot|I am sorry|I would rather|No\b", answer)
    assert seen == {"yes", "no", "check", "refused", "answered"}


def test_small_helpers_by_hand():
    assert with_article("owl") == "an owl"
    assert with_article("fox") == "a fox"
    assert sentences('he came. "who is it?" she asked.\nnobody.') == 'He came. "Who is it?" she asked.\nNobody.'
