# %% [markdown]
# # Supervised fine-tuning
#
# Pretraining made a model that continues text. Ask it a question, and it continues that, too: with a story, with more
# questions, with whatever such a line stood before. *Supervised fine-tuning* (SFT) turns it into a model that answers.
# It is next-token prediction, as before, on conversations, with loss on the answers alone.
#
# The training loop stays. What is new is bookkeeping, and each mistake in it is silent: the loss falls all the same. In
# this lab you see each of them, tune a model, and find out what it learned, and what it only learned by heart.

# %% tags=["parameters"]
profile = "full"  # "fast": a few steps, for a quick look

# %%
import torch

from cme295lab.finetuning import sft
from cme295lab.finetuning.chat import add_chat_tokens, chat_template, encode_chat, encode_chats, pack_chats
from cme295lab.finetuning.instructions import PROBES, instruction_data
from cme295lab.transformer import load_pretrained
from cme295lab.transformer.decoding import Sampling, generate
from cme295lab.widgets import TokenMaskView, loss_curves, token_mask

FULL = profile == "full"
base = load_pretrained("course-4m").model
tokenizer = load_pretrained("course-4m").tokenizer
print(f"{sum(p.numel() for p in base.parameters()):,} parameters, {tokenizer.vocab_size:,} tokens")

# %% [markdown]
# ## 1. A base model is asked
#
# The course's model has read stories and the documentation of Python. **Predict**: how does it go on after the question
# about the teddy bear?

# %%
QUESTION = PROBES[0].messages[0].content
prompt = tokenizer.encode(QUESTION)
for seed in range(3):
    drawn = generate(base, [prompt], max_new_tokens=30, sampling=Sampling(temperature=0.7, top_p=0.9), seed=seed)
    print(QUESTION, "→", repr(tokenizer.decode(drawn.tokens[0])), "\n")

# %% [markdown]
# It goes on as documentation does. No temperature mends that: where such a line stood in its texts, if it did, no
# answer followed, and the model has learned what texts do. A larger base model does it in better English, and may go on
# with "My son did it yesterday and..." or with five more questions of a forum.
#
# Two things are missing: a way to say *here the question ends, now answer*, and a reason to stop.

# %% [markdown]
# ## 2. Templates
#
# A conversation has to become one text. How is a convention: four of them.

# %% tags=["nbval-check-output"]
hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
for name in ("chatml", "llama-3", "llama-2", "alpaca"):
    print(f"{name:8}", repr(chat_template(name).render(hello)))

# %% [markdown]
# A model is tuned to one template, to the last space, and answers badly in any other. Three details go wrong most
# often:
#
# - **Control tokens are one token each.** `<|im_end|>` cut into six is nothing that generation can stop at.
# - **The prompt ends where the answer begins**: with the assistant's header (`add_generation_prompt`), or else the
#   model goes on with the user's turn.
# - **One token to begin.** Llama's templates write `<s>` or `<|begin_of_text|>`, and its tokenizer adds one of its own
#   unless told not to. **Predict** what is printed:

# %% tags=["nbval-check-output"]
from tokenizers.processors import TemplateProcessing

llama = chat_template("llama-2")
like_llama = add_chat_tokens(tokenizer, llama)
begin = like_llama.encode("<s>")[0]
like_llama.tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
text = llama.render(hello)
for special in (True, False):
    tokens = like_llama.encode(text, special=special)
    first = [like_llama.token_text(token) for token in tokens[:4]]
    print(f"special={special!s:5}: {tokens.count(begin)} × <s>, beginning {first}")

# %% [markdown]
# No error, and a model that was trained with one of them now sees two. `encode_chat` always takes the second way.
#
# ## 3. Whose tokens count
#
# Loss is on what the assistant has to say: each answer **and the end of its turn**. Elsewhere the target is -100, which
# `cross_entropy` leaves out. **Predict**: what would a model do that was trained without the last one? With loss on the
# user's words?
#
# Bold and underlined tokens carry loss. Change the template, shorten the answer, empty it, write `<|im_end|>` into it;
# set the limit below the length; show packed rows.

# %%
NAMES = ("teddy bear", "story", "poem", "arithmetic", "code", "explanation", "refusal")
view = TokenMaskView(tokenizer, {name: probe.messages for name, probe in zip(NAMES, PROBES)})
display(view)

# %% tags=["picture"]
display(view.figure())

# %% [markdown]
# An answer that is too long is never cut: a model that learned from cut answers stops in the middle. Whole turns at the
# beginning go, or the conversation does.
#
# One trap more. The mask is right only if the tokens before the answer are *the ones that the prompt alone has*. Where
# a vocabulary merges the prompt's last characters with the answer's first, they are not. Llama-3's header ends with
# an empty line; our vocabulary reads it differently before a word:

# %% tags=["nbval-check-output"]
for text in ("\n\n", "\n\nHello"):
    print([tokenizer.token_text(token) for token in tokenizer.encode(text)])
llama3 = chat_template("llama-3")
try:
    encode_chat(hello, add_chat_tokens(tokenizer, llama3), llama3)
except ValueError as error:
    print(str(error)[:128], "…")

# %% [markdown]
# Llama-3's own vocabulary has the empty line as one token, whatever follows; in the view it was given to ours.
#
# ## 4. A mean of what?
#
# $$L = \frac{\sum_t w_t \, \mathrm{CE}_t}{\sum_t w_t}, \qquad w_t = 1 \text{ where the assistant speaks, else } 0$$
#
# One answer has 2 tokens at a loss of 1.0, another 6 at 3.0. They are in two micro-batches. **Predict** what each line
# prints:

# %% tags=["nbval-check-output"]
losses = [torch.full((2,), 1.0), torch.full((6,), 3.0)]
whole = torch.cat(losses).mean()
mean_of_means = sum(part.mean() for part in losses) / len(losses)
by_count = sum(part.mean() * len(part) for part in losses) / sum(map(len, losses))
print(f"one batch {whole:.1f}, mean of the means {mean_of_means:.1f}, weighted by counts {by_count:.1f}")

# %% [markdown]
# The second was in several libraries until October 2024: each micro-batch took its own mean, and accumulation averaged
# the means. In pretraining all rows have the same number of targets, and nobody notices. With answers of different
# lengths, the size of a micro-batch, or the number of GPUs, changes what is learned. On real conversations:

# %%
alpaca = chat_template("alpaca", bos_token="", eos_token="<|end|>")  # tokens that course-4m knows
data = instruction_data(num_examples=1500 if FULL else 48, num_held_out=60 if FULL else 12)


def packed(examples, **options):
    encoded = encode_chats([e.messages for e in examples], tokenizer, alpaca, max_length=256, on_error="skip")
    return pack_chats(encoded.examples, seq=256, end_token=tokenizer.end_token, **options)


train, usual, shifted = packed(data.train), packed(data.in_distribution), packed(data.shifted)
print(data)

# %%
batch = packed(data.train[:24], filling="one-per-row").batch(step=0, rows=8)


def loss_of(part):
    return base.loss(part.tokens, part.targets, positions=part.positions, documents=part.documents).item()


for rows in (8, 4, 2, 1):
    parts = batch.split(rows)
    means = sum(map(loss_of, parts)) / len(parts)
    right = sum(loss_of(part) * part.num_targets for part in parts) / batch.num_targets
    print(f"micro-batches of {rows}: mean of means {means:.4f}, weighted {right:.4f}")

# %% [markdown]
# ## 5. Packing
#
# Conversations are short, so one to a row wastes most of it. They are packed, as documents are in pretraining:
# attention is block-diagonal, so none sees another, and positions begin again.
#
# $$\text{utilisation} = \frac{\sum \text{lengths}}{\text{rows} \cdot \text{row length}}$$

# %%
for filling in ("one-per-row", "next-fit", "best-fit"):
    rows = packed(data.train, filling=filling)
    print(f"{filling:12} {rows.num_rows:5,} rows of 256, {rows.utilisation:.0%} full; "
          f"of the tokens, {rows.target_share:.0%} carry loss")

# %% [markdown]
# The time of a step depends on its rows, so half the rows are half the time. Is a packed conversation treated as if it
# were alone? Compare the logits:

# %% tags=["nbval-check-output"]
row = pack_chats([encode_chat(p.messages, tokenizer, alpaca) for p in PROBES[:2]], seq=320, end_token=0).batch(0, 1)
second = row.documents[0] == 2
with torch.no_grad():
    alone = base(row.tokens[:, second])
    inside = base(row.tokens, positions=row.positions, documents=row.documents)[:, second]
    careless = base(row.tokens)[:, second]
print("with positions and documents:", torch.allclose(alone, inside, atol=1e-3))
print("without:                     ", torch.allclose(alone, careless, atol=1e-3))

# %% [markdown]
# Without the mask, the second conversation is answered by somebody who has read the first.
#
# ## 6. Tune it
#
# Six kinds of conversations, generated. Two evaluations: *usual* has the words and phrasings of training in other
# combinations; *shifted* has other words, phrasings and larger numbers. **Predict** both curves.

# %%
config = sft.SftConfig(
    num_steps=180 if FULL else 4, rows_per_step=8 if FULL else 2, learning_rate=2e-3,
    evaluate_every=20 if FULL else 2, evaluation_rows=16 if FULL else 2,
)  # fmt: skip
tuned = load_pretrained("course-4m").model
run = sft.train_sft(tuned, train, config, evaluation={"usual": usual, "shifted": shifted}, progress=False)
curves = {name: list(run.losses_of(name).items()) for name in ("usual", "shifted")}
display(loss_curves(curves))

# %% [markdown]
# The point at step 0 is the base. The gap between the curves is the lesson. In training and *usual*, sentences recur in
# other combinations, so a falling loss there says that the forms were learned. Whether the model can do more than
# repeat them, only the other curve says: after the first steps it stands still, and in the end it rises a little.
#
# Now the same questions to both, greedily:

# %%
def answers(model, questions, sampling=None, seed=None, max_new_tokens=48):
    prompts = [tokenizer.encode(alpaca.render(messages, True), special=False) for messages in questions]
    drawn = generate(model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed,
                     end_token=tokenizer.end_token)  # fmt: skip
    return [(tokenizer.decode(tokens), how) for tokens, how in zip(drawn.content, drawn.finished)]


asked = [probe.messages[:1] for probe in PROBES]
for name, messages, *both in zip(NAMES, asked, answers(base, asked), answers(tuned, asked)):
    print(f"\n{name}: {messages[0].content}")
    for who, (answer, how) in zip(("base ", "tuned"), both):
        print(f"  {who} ({how}): {answer[: 40 if who == 'base ' else 170]!r}")

# %% [markdown]
# Look at what was learned and what was not:
#
# - Asked for advice, a story, a poem, a sum or a function, it gives something of that **form**. The base writes `#`.
# - Most answers **end**, by the token that carried loss. The base's never do.
# - **Nothing is right.** The sum is wrong in each step, the function counts no bears, the poem is made of lines from
#   training, the advice makes no sense. The last question should be declined; it gets a volcano.
#
# SFT teaches a *behaviour*. What a model knows comes from pretraining, and four million parameters do not know much.
# Confident answers without knowledge are what fine-tuning on facts that a model lacks produces at any size.

# %% [markdown]
# ## 7. Temperature
#
# Sixteen answers to the teddy-bear question for each temperature. How many begin as advice does, how many ways to begin
# are there (two words), how many end by themselves? **Predict** the direction of each:

# %%
ADVICE = ("Yes", "No", "It depends", "Perhaps")
for temperature in (0.2, 0.5, 1.0, 1.5):
    drawn = answers(tuned, [asked[0]] * 16, Sampling(temperature=temperature), seed=1)
    advice = sum(text.startswith(ADVICE) for text, _ in drawn)
    openings = len({tuple(text.split()[:2]) for text, _ in drawn})
    ended = sum(how == "end" for _, how in drawn)
    print(f"T = {temperature}: {advice:2} of 16 are advice, {openings:2} openings, {ended:2} end; "
          f"the first: {drawn[0][0][:90]!r}")

# %% [markdown]
# Tuned models are used at temperatures below 1. At 0.2 all answers are advice that begins in three ways. At 1.0
# a quarter have lost the form, at 1.5 most. Heat does not make this model inventive: it leaves the forms that it
# learned, and beside them there is little.

# %% [markdown]
# ## 8. By heart
#
# Fine-tuning data are few and are read several times. What happens if they are read very often? Twenty-four
# conversations, and nothing else. **Predict** the loss on them at the end, and on others:

# %%
few = [e for e in data.train if len(tokenizer.encode(e.text)) < 150][: 24 if FULL else 3]
rows = packed(few)
often = sft.SftConfig(
    num_steps=40 if FULL else 3, rows_per_step=8 if FULL else 1, learning_rate=2e-3,
    evaluate_every=8 if FULL else 3, evaluation_rows=16 if FULL else 1,
)  # fmt: skip
parrot = load_pretrained("course-4m").model
heart = sft.train_sft(parrot, rows, often, evaluation={"usual": usual}, progress=False)
print(f"{rows.num_rows} rows, read {often.num_steps * often.rows_per_step / rows.num_rows:.0f} times")
seen = [(record["step"], record["loss"]) for record in heart.records]
display(loss_curves({"the same few": seen, "usual": list(heart.losses_of("usual").items())}))

# %%
def by_heart(model, examples):
    found = answers(model, [e.messages[:-1] for e in examples], max_new_tokens=100)
    return sum(text == e.messages[-1].content for e, (text, _) in zip(examples, found))


short = [e for e in few if len(tokenizer.encode(e.messages[-1].content)) < 100]
print(f"of {len(short)} training answers said word for word: by the parrot {by_heart(parrot, short)}, "
      f"by the tuned model {by_heart(tuned, short)}, by the base {by_heart(base, short)}")
print(f"best weights on other conversations: after step {heart.best_step}")

# %% [markdown]
# Training loss near zero, loss on others rising: the parrot recites every answer, and it was at its best for others
# long before. `train_sft` therefore evaluates before the first update and keeps the best weights (`sft.load_best`). A
# few epochs are usual for SFT; the model of section 6 read its data less than twice, and recites none of these.
#
# Whole answers, that is: some of its lines are from training, too. And what comes out may be names and addresses.

# %% [markdown]
# ## 9. How much data?
#
# | model | conversations for SFT |
# |---|---|
# | LIMA | 1,000, chosen by hand |
# | InstructGPT | 12,725 |
# | Llama-2-chat | 27,540 |
# | Alpaca | 52,002, written by another model |
# | Tülu 3 | 939,344, a mixture |
# | Llama 3 | over 10 million human-annotated examples, all of post-training |
#
# Four orders of magnitude, and the smallest made a good model: a strong base needs few examples to learn the form. What
# many buy is breadth: kinds of tasks that a handful of examples does not show. Beside pretraining all are tiny.
#
# In tokens with loss, if each answer were as long as that about the bear (they differ; it is an order of magnitude):

# %% tags=["nbval-check-output"]
targets = token_mask(PROBES[0].messages, tokenizer, "chatml").num_targets
print(f"the teddy-bear answer: {targets} tokens with loss; at that length")
for name, number in (("LIMA", 1_000), ("Alpaca", 52_002), ("Tülu 3", 939_344)):
    print(f"  {name:6} {number * targets / 1e6:6.2f} million")

# %% [markdown]
# Against 15 trillion tokens of pretraining for Llama 3.
#
# ## 10. A base model with more knowledge
#
# With SmolLM2 (135 million parameters, `cme295lab fetch smollm2`), the same question. It is a base, too. Compare the
# bare question with one that is dressed as a conversation:

# %%
from cme295lab.transformer.pretrained import pretrained_or_course

larger = pretrained_or_course() if FULL else None
if larger is None or larger.model.config.name == base.config.name:
    print("left out: a full run after `cme295lab fetch smollm2` has this section")
else:
    for text in (QUESTION, alpaca.render(asked[0], True)):
        drawn = generate(larger.model, [larger.tokenizer.encode(text)], max_new_tokens=40)
        print(repr(text[-60:]), "→", repr(larger.tokenizer.decode(drawn.tokens[0])), "\n")

# %% [markdown]
# ## What to remember
#
# - SFT is next-token prediction with a mask: answers and ends of turn count, nothing else.
# - Sum of losses over sum of weights, over all micro-batches and all GPUs.
# - The template is part of the model. Control tokens are single tokens, and a text begins once.
# - Pack, with attention and positions by conversation. Never cut an answer.
# - Evaluate on data that differ from the training data. Style comes quickly; knowledge does not come at all.
#
# ## Exercise
#
# `exercises/sft_loss_mask`: the labels of a conversation, the loss over micro-batches, and packed rows.
#
# ## Sources
#
# Ouyang et al. 2022 (InstructGPT). Zhou et al. 2023, *LIMA*. Taori et al. 2023 (Alpaca). Touvron et al. 2023 (Llama 2).
# Lambert et al. 2024 (Tülu 3).
