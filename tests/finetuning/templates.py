"""Chat templates as they are published, and a tokenizer of `transformers` that renders them: the oracle of these tests.

Jinja texts as they stand in tokenizers' files of Meta's models and in collections of templates.
"""

from functools import cache

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from cme295lab.finetuning.chat import ChatTemplate, chat_template
from cme295lab.transformer.text import TextTokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + "
    "'\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% set loop_messages "
    "= messages[1:] %}{% else %}{{ '" + ALPACA_PREAMBLE + "\n\n' }}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}{% if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] "
    "+ '\n\n' }}{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token + "
    "'\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
CHATML_MARKED = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
            {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

LLAMA_3_MARKED = LLAMA_3.replace(
    "{{ content }}",
    "{% if message['role'] == 'assistant' %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% generation %}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ content }}{% endif %}",
)
LLAMA_2_SPOKEN = "{{ ' '  + content.strip() + ' ' + eos_token }}"
LLAMA_2_MARKED = LLAMA_2.replace(LLAMA_2_SPOKEN, "{% generation %}" + LLAMA_2_SPOKEN + "{% endgeneration %}")
ALPACA_MARKED = ALPACA.replace(
    "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}",
    "{{ '### Response:\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n\n' }}",
)
MARKED = {"chatml": CHATML_MARKED, "llama-3": LLAMA_3_MARKED, "llama-2": LLAMA_2_MARKED, "alpaca": ALPACA_MARKED}

# Of models that have no template of their own here: SmolLM2, Gemma, Zephyr
OTHERS = {
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}" + CHATML.partition("{% for message in messages %}")[2],
    "gemma": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = "
    "'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{'<start_of_turn>model\n'}}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] "
    "+ eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}

PUBLISHED = {"chatml": CHATML, "llama-3": LLAMA_3, "llama-2": LLAMA_2, "alpaca": ALPACA}
TOKENS = {
    "chatml": {}, "llama-3": {"bos_token": "<|begin_of_text|>"}, "llama-2": {"bos_token": "<s>", "eos_token": "</s>"},
    "alpaca": {"bos_token": "<s>", "eos_token": "</s>"},
}  # fmt: skip
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>"]  # fmt: skip

SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LONG = [
    {"role": "system", "content": "Be brief.\nBe kind."},
    {"role": "user", "content": "  Can I wash my teddy bear?  "},
    {"role": "assistant", "content": "Yes, by hand: 30 °C."},
    {"role": "user", "content": "And dry it?\n\nOutside?"},
    {"role": "assistant", "content": "In the shade 🙂. Größe: same."},
]
CONVERSATIONS = {"short": SHORT, "long": LONG, "open": LONG[1:4], "no system": LONG[1:]}


@cache
def tokenizer(begin: str | None = None) -> TextTokenizer:
    """A byte-level vocabulary of 400 tokens that knows all control tokens; `begin` is put before every text."""
    library = Tokenizer(BPE())
    library.pre_tokenizer, library.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [message["content"] for message in LONG] + ["user assistant system ### Instruction: Response: [INST]"] * 3
    library.train_from_iterator(
        texts, BpeTrainer(vocab_size=400, special_tokens=CONTROL, initial_alphabet=ByteLevel.alphabet(),
                          show_progress=False)
    )  # fmt: skip
    if begin:
        library.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, library.token_to_id(begin))]
        )
    return TextTokenizer(library, end_token="</s>")


@cache
def sentence_piece_tokenizer() -> TextTokenizer:
    """A vocabulary as Llama-2's: a space is "▁", at the beginning of a word and of the text."""
    library = Tokenizer(BPE(unk_token="<unk>"))
    library.pre_tokenizer, library.decoder = Metaspace(prepend_scheme="first"), decoders.Metaspace()
    texts = [message["content"] for message in LONG] + ["user assistant system ### Instruction: Response: [INST]"] * 3
    library.train_from_iterator(
        texts, BpeTrainer(vocab_size=300, special_tokens=["<unk>", *CONTROL], show_progress=False)
    )
    return TextTokenizer(library, end_token="</s>")


def published(name: str) -> ChatTemplate:
    """Our own version of a published template."""
    return chat_template(name, **TOKENS[name])
