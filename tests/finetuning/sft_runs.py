"""Conversations that count, and the settings of a fine-tuning run that takes a blink."""

from cme295lab.finetuning.chat import ChatExample, pack_chats
from cme295lab.finetuning.sft import SftConfig
from tests.pretraining.runs import SEQ


def chats(step=1, number=40):
    """A question of 1 to 5 tokens, and an answer of 1 to 6 that counts in steps; the last is the end of turn."""
    examples = []
    for start in range(number):
        asked, said = [start % 30 + 1] * (1 + start % 5), 1 + start % 6
        answer = [(start + step * place) % 29 + 1 for place in range(said)] + [31]
        examples.append(ChatExample(asked + answer, [False] * len(asked) + [True] * len(answer)))
    return examples


def packed(step=1, number=40, seed=0):
    return pack_chats(chats(step, number), seq=SEQ, end_token=0, seed=seed)


def never_said():
    """Answers of a token that no answer of `packed` has: the more is learned there, the less likely it is."""
    return pack_chats([ChatExample([asked, 30], [False, True]) for asked in range(1, 9)], seq=SEQ, end_token=0)


def config(**changes):
    values = {"num_steps": 6, "rows_per_step": 4, "micro_rows": 2, "learning_rate": 2e-2, "evaluate_every": 2}
    return SftConfig(**{**values, "checkpoint_every": 3, **changes})


def only_norms(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    return model
