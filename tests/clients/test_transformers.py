"""Models of Hugging Face in a LightningModule, with its collators: a language model, and a classifier of texts."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from client_training import Module

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

GOOD, BAD = ["good", "great", "fine", "lovely"], ["bad", "poor", "dull", "awful"]
WORDS = ["[PAD]", "[UNK]", "the", "a", "film", "play", "story", "seems", "and", "very", *GOOD, *BAD]
LABELS = [row % 2 for row in range(32)]


def texts() -> list[str]:
    """Good and bad reviews of 4 to 7 words, one after the other."""
    found: list[str] = []
    for row in range(32):
        words = (GOOD, BAD)[row % 2]
        end = ("", " and very {}", " and {}")[row // 3 % 3].format(words[row // 5 % 4])
        found.append(f"{('the film', 'a play', 'the story')[row % 3]} seems {words[row // 2 % 4]}{end}")
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def step(net: Any, batch: Any) -> Tensor:
    return net(**batch).loss


def language_model(callbacks: list[Any], settings: dict[str, Any]) -> Module:
    encode = tokenizer()
    data = Dataset.from_dict({"text": texts()})
    data = data.map(lambda row: encode(row["text"], return_token_type_ids=False), remove_columns=["text"])
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    net = GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, **size))
    collate = DataCollatorForLanguageModeling(encode, mlm=False)
    module = Module(net, step)
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(
        module, DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate)
    )
    return module


def classifier(callbacks: list[Any], settings: dict[str, Any]) -> Module:
    encode = tokenizer()
    data = Dataset.from_dict({"text": texts(), "label": LABELS})
    data = data.map(lambda row: encode(row["text"]), remove_columns=["text"])
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    net = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), num_labels=2, **size))
    module = Module(net, step)
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(
        module, DataLoader(data, batch_size=8, shuffle=True, collate_fn=DataCollatorWithPadding(encode))
    )
    return module


def test_gpt2_of_padded_texts(compare: Callable[..., None]) -> None:
    compare(language_model, train=range(24), query=range(6))


def test_bert_that_classifies(compare: Callable[..., None]) -> None:
    compare(classifier, train=range(24), query=range(6), labels=LABELS[:24])
